"""Make the files that are alike in every bundle and follow from its base files.

``python -m tools.boilerplate`` writes them into each bundle. They are committed, so a bundle works without this tool.
Their common parts are in ``templates/``; the rest is read from the bundle's base files.
"""
