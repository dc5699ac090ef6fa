"""The web page: every task with a mouse, in a browser.

``server`` listens, ``guard`` refuses what the page does not use, ``intake`` takes pictures in, ``reader`` has them read
in a process of its own (by ``uploads``), ``shelf`` keeps them, ``handlers`` does the work, ``render`` draws it as HTML,
``page`` lays it out with Gradio, ``visitors`` keeps count. Only ``page``, ``intake`` and ``server`` need Gradio
(``pip install 'dctransformer[app]'``).
"""
