"""The image server, and what starts the services that demos and tests talk to."""
