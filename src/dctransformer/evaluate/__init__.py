"""Evaluation of a model: distances to real pictures, exact bits, and a report.

* `metrics`: the formulas, on features alone.
* `features`, `small64`: what turns pictures into features.
* `pictures`, `cache`: which pictures; their features, kept between evaluations.
* `bits`, `coders`: exact code lengths next to those of classical coders.
* `nearest`: whether training pictures were copied.
* `evaluation` (`evaluate`), `config`, `tables`: all of it in one call, its settings, its text.
* `plots`, `report` (`write_report`): all of it on one page.
"""
