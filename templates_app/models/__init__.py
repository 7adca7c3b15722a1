"""The rows of the templates house."""

from templates_app.models.template import Template, TemplateSet, report_failure

__all__ = ["Template", "TemplateSet", "report_failure"]
