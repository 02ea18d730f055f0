"""What each party of a run could really learn: views of the parties, attacks on views, a report.

An attack gets a view (`views.py`) and public things (base model, plan), and nothing else; what is
true (`stage.Truth`) is only seen by what scores it.
"""
