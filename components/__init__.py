"""KFP components, one a folder. Each is thin: it calls one function of :mod:`spare_core.workflow.tasks` with paths."""
