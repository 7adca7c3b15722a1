"""The configuration console: ModelAdmins on django-unfold, one file a house, all of them obeying base.py."""
