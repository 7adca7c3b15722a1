"""The HTTP doors other programs use: alert sources push events, clients of the reference's Open API read and act."""
