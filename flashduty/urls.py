"""Every door of the product, in one table."""

from django.contrib import admin
from django.urls import path, re_path
from drf_spectacular.views import SpectacularAPIView

from flashduty import health
from flashduty.api import incidents, ingest
from flashduty.web import callbacks, login, me, pages, sandbox

admin.autodiscover()
admin.site.login_form = login.SignInForm

urlpatterns = [
    path("", pages.home, name="home"),
    re_path(r"^i/(?P<wire_id>[0-9a-f]{24})/$", pages.shared, name="incident_shared"),
    path("i/<token>/", pages.personal, name="incident_personal"),
    path("me/", me.me, name="me"),
    path("me/contacts.vcf", me.contacts, name="me_contacts"),
    path("sandbox/", sandbox.sandbox, name="sandbox"),
    path("sandbox/messages", sandbox.messages, name="sandbox_messages"),
    path("sandbox/press", sandbox.press, name="sandbox_press"),
    path("sandbox/alert", sandbox.alert, name="sandbox_alert"),
    re_path(r"^callback/(?P<key>[0-9A-Za-z_-]{8,64})(?:/[\s\S]*)?$", callbacks.callback, name="callback"),
    path("admin/", admin.site.urls),
    *health.urls,
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    *ingest.urls,
    *incidents.urls,
]
