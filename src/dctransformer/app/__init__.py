"""The web page: every task with a mouse, in a browser.

``uploads`` reads what people bring, ``handlers`` does the work, ``render`` draws it as HTML, ``page`` lays it out with
Gradio, ``server`` listens. Only the last two need Gradio (``pip install 'dctransformer[app]'``).
"""
