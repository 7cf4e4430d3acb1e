"""From a request to an adapter directory in one process, stage by stage."""
