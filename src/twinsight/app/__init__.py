"""The web demo: ``twinsight app`` explains photos in a browser. Needs the extra ``app``."""
