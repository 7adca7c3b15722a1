"""Members, teams, the points and devices where they are reached, keys, mapping tables, and the installation's one row of settings."""

from mapping.models.api_key import ApiKey
from mapping.models.contact_point import ContactPoint
from mapping.models.device import Device
from mapping.models.installation import Installation
from mapping.models.mapping_table import MappingEntry, MappingTable
from mapping.models.member import Member
from mapping.models.team import Team
from mapping.models.throttle import Throttle

__all__ = ["ApiKey", "ContactPoint", "Device", "Installation", "MappingEntry", "MappingTable", "Member", "Team", "Throttle"]
