"""What the frame of the console (django-unfold, which has no catalogues) says, for `make messages` to find; nothing imports this."""

from django.utils.translation import gettext_noop as _
from django.utils.translation import ngettext

WORDS = [
    _("Welcome back to"), _("Welcome"), _("Return to site"), _("Toggle password visibility"), _("Go back"), _("Select action"), _("Run"),
    _("Select action to run"), _("Select all rows"), _("Select all %(total_count)s %(module_name)s"), _("Select record"), _("Select value"),
    _("Expand row"), _("Sorting priority: %(priority_number)s"), _("Apply Filters"), _("Reset filters"), _("Clear all filters"), _("Filters"),
    _(" By %(filter_title)s "), _("Date"), _("Date from"), _("Date to"), _("Value"), _("Type to search"),
    _("No results found"), _("No results matching your query"), _("Loading more results..."), _("Recent searches"), _("No recent searches"),
    _("This page yielded into no results. Create a new item or reset your filters."), _("Search apps and models..."),
    _("Filter navigation items"), _("All applications"), _("More actions"), _("Previous"), _("Next"), _("No data"), _("General"), _("Light"),
    _("Dark"), _("System"), _("True"), _("False"), _("Cancel"), _("Submit"), _("Add row"), _("Choose file to upload"), _("Click to cancel"),
    _("Click to download"), _("This item will be deleted."), _("Show counts"), _("Hide counts"), _("Add %(name)s"), _("%(full_result_count)s total"),
    _("You have been successfully logged out from the administration"),
]  # fmt: skip


def counted(counter: int) -> list[str]:
    return [
        ngettext("%(counter)s result", "%(counter)s results", counter),
        ngettext("Found %(counter)s result in %(time)s seconds", "Found %(counter)s results in %(time)s seconds", counter),
    ]
