"""Every door of the product, in one table."""

from django.contrib import admin
from django.urls import path

from flashduty import health
from flashduty.api import incidents, ingest
from flashduty.api.envelope import route

urlpatterns = [
    path("admin/", admin.site.urls),
    *health.urls,
    route("event/push/alert/standard", ingest.Push.as_view(), "push_standard"),
    route("event/push/alert/prometheus", ingest.PushPrometheus.as_view(), "push_prometheus"),
    *incidents.urls,
]
