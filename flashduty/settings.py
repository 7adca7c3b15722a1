"""What must be known before the database is: where it is, what encrypts it, who may reach us. All else is configured in the admin."""

import os
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static
from django.urls import reverse_lazy
from django.utils.translation import gettext_lazy as _


def env(name: str, default: str = "") -> str:
    """The environment variable, or the content of the file that NAME_FILE names (a mounted secret); a named file that is not there is an error now."""
    path = os.environ.get(f"{name}_FILE")
    if path:
        try:
            return Path(path).read_text().strip()
        except OSError as error:
            raise ImproperlyConfigured(f"{name}_FILE names {path}, which cannot be read: {error.strerror}.") from None
    return os.environ.get(name, default)


def switch(name: str, default: bool) -> bool:
    value = env(name, "True" if default else "False")
    if value not in ("True", "False", ""):
        raise ImproperlyConfigured(f"{name} must be True, False or empty, not {value!r}.")
    return value == "True"


def database(url: str, statement_ms: int, by_index: bool = False) -> dict:
    """postgresql://user:password@host:port/name?host=/socket/folder -> Django's DATABASES entry with the limits every connection has."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgres", "postgresql") or not parts.path.strip("/"):
        raise ImproperlyConfigured("DATABASE_URL must look like postgresql://user:password@host:5432/name.")
    query = dict(parse_qsl(parts.query))
    pooled = query.pop("pooled", "") == "1"
    host = query.pop("host", "") or unquote(parts.hostname or "")
    limits = {
        "statement_timeout": statement_ms,
        "lock_timeout": 3000,
        "idle_in_transaction_session_timeout": 30000,
        "client_connection_check_interval": 1000,
        # A batch of a hundred rows joined to a million must not be planned by the mood of the statistics' day.
        "jit": "off",
    }
    if by_index:
        # A plan made while a table was small is kept while it grows: the engine's look went from 0.2 to 36 ms within a minute of a storm. What
        # residents say is a few rows looked up by index, whatever the table's size: one plan, made once, is the right one. Planned anew
        # each time, as the server likes to do for arrays, it is a third of its work for an alert.
        limits |= dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_bitmapscan"), "off")
        limits["plan_cache_mode"] = "force_generic_plan"
    options: dict = query | {
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10000,
        "connect_timeout": 3,
    }
    if not pooled:  # PgBouncer refuses start-up parameters it does not know
        options["options"] = " ".join(f"-c {name}={value}" for name, value in limits.items())
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.strip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": host,
        "PORT": str(parts.port or query.pop("port", "")),
        "CONN_MAX_AGE": None,  # 0 costs four times as much; a dead connection is noticed by CONN_HEALTH_CHECKS
        "CONN_HEALTH_CHECKS": True,
        "DISABLE_SERVER_SIDE_CURSORS": pooled,
        "OPTIONS": options | {"prepare_threshold": None if pooled else 3},
    }


BASE_DIR = Path(__file__).resolve().parent.parent
MODE = env("FLASHDUTY_MODE", "production")  # demo (`make run`) | test | production
if MODE not in ("demo", "test", "production"):
    raise ImproperlyConfigured(f"FLASHDUTY_MODE must be demo, test or production, not {MODE!r}.")
TEST = MODE == "test"
DEBUG = False
DATA = Path(env("FLASHDUTY_DATA", str(BASE_DIR / ".data"))).absolute()
# Slots, heartbeats and stop files of this node's workers. A node is one folder: two folders on one machine are two nodes.
RUN_DIR = Path(env("FLASHDUTY_RUN_DIR", str(DATA / "run")))
SANDBOX = switch("FLASHDUTY_SANDBOX", MODE != "production")

_needed = {
    name: env(name) for name in ("BASE_URL", "FLASHDUTY_SECRET_KEY", "FLASHDUTY_ENCRYPTION_KEYS", "FLASHDUTY_LINK_KEYS", "DATABASE_URL")
}
if TEST:
    _for_tests = {
        "BASE_URL": "http://testserver",
        "FLASHDUTY_SECRET_KEY": "tests-only-" + "0" * 48,
        "FLASHDUTY_ENCRYPTION_KEYS": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
        "FLASHDUTY_LINK_KEYS": "tests-only-link-key-0123456789abcdef",
        "DATABASE_URL": "postgresql://postgres@127.0.0.1/flashduty",
    }
    _needed = {name: value or _for_tests[name] for name, value in _needed.items()}
if _missing := [name for name, value in _needed.items() if not value]:
    raise ImproperlyConfigured(
        f"Set {', '.join(_missing)} (or {_missing[0]}_FILE). `make run` sets them for you; see README.md, Production."
    )

BASE_URL = _needed["BASE_URL"].rstrip("/")
if urlsplit(BASE_URL).scheme not in ("http", "https") or not urlsplit(BASE_URL).hostname:
    raise ImproperlyConfigured("BASE_URL must be the address people open, such as https://oncall.example.com.")
SECRET_KEY = _needed["FLASHDUTY_SECRET_KEY"]
# Comma-separated, newest first: the first encrypts and signs, all of them decrypt and verify.
ENCRYPTION_KEYS = [key.strip() for key in _needed["FLASHDUTY_ENCRYPTION_KEYS"].split(",") if key.strip()]
LINK_KEYS = [key.strip() for key in _needed["FLASHDUTY_LINK_KEYS"].split(",") if key.strip()]
HTTPS = urlsplit(BASE_URL).scheme == "https"
ALLOWED_HOSTS = [urlsplit(BASE_URL).hostname, *filter(None, env("ALLOWED_HOSTS").split(","))]
if MODE != "production":
    ALLOWED_HOSTS += ["127.0.0.1", "localhost", "[::1]"]

# Residents run long statements and need a session (LISTEN does not survive a transaction pooler); the web must not wait.
RESIDENT = switch("FLASHDUTY_RESIDENT", False)
DATABASE_DIRECT_URL = env("DATABASE_DIRECT_URL") or _needed["DATABASE_URL"]
DATABASES = {
    "default": database(DATABASE_DIRECT_URL if RESIDENT else _needed["DATABASE_URL"], 30_000 if RESIDENT else 10_000, by_index=RESIDENT)
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin.apps.SimpleAdminConfig",  # the console is loaded by the urls: workers have no pages
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "rest_framework",
    "drf_spectacular",
    "phonenumber_field",
    "django_q",
    "mapping",
    "templates_app",
    "channels_app",
    "escalation",
    "flashduty",
]
MIDDLEWARE = [
    "flashduty.api.ingest.lane",  # pushes of alert sources pass the rest by
    "flashduty.health.lane",  # and so do probes
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "flashduty.web.middleware.MemberLocaleMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
# Senders turn a redirected POST into a GET: no door here ever redirects for a slash.
APPEND_SLASH = False
ROOT_URLCONF = "flashduty.urls"
WSGI_APPLICATION = "flashduty.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "flashduty" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

AUTH_USER_MODEL = "mapping.Member"
LOGIN_URL = "/admin/login/"
LOGIN_REDIRECT_URL = "/admin/"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
if TEST:
    PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_NAME = "flashduty_session"
CSRF_COOKIE_NAME = "flashduty_csrf"
CSRF_TRUSTED_ORIGINS = [BASE_URL]
SECURE_REFERRER_POLICY = "same-origin"
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SECURE_SSL_REDIRECT = False  # the proxy in front redirects pages; an alert source must never meet a redirect
SILENCED_SYSTEM_CHECKS = ["security.W008"]  # the reason is the line above
if switch("TRUST_PROXY", False):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
X_FRAME_OPTIONS = "DENY"
# Forms, the sign-in page of strangers included; pushes read their bodies themselves and have caps of their own.
DATA_UPLOAD_MAX_MEMORY_SIZE = 2_621_440
DATA_UPLOAD_MAX_NUMBER_FIELDS = 5000
FILE_UPLOAD_HANDLERS: list[str] = []  # nothing here takes files: a stranger's would fill the disk before any page could refuse it

LANGUAGE_CODE = env("LANGUAGE", "en") if env("LANGUAGE", "en") in ("en", "zh-hans") else "en"
LANGUAGES = [("en", _("English")), ("zh-hans", _("Chinese (simplified)"))]
LOCALE_PATHS = [BASE_DIR / "flashduty" / "locale"]
USE_I18N = USE_TZ = True
FORMAT_MODULE_PATH = "flashduty.formats"
TIME_ZONE = "UTC"

STATIC_URL = "/static/"
# In production `collectstatic` fills it; elsewhere files are served from where they lie.
STATIC_ROOT = BASE_DIR / "staticfiles" if MODE == "production" else None
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = MODE != "production"
PHONENUMBER_DEFAULT_FORMAT = PHONENUMBER_DB_FORMAT = "E164"

CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}

# Each web process gives an integration its share of the rate limit; told by whoever starts them.
WEB_PROCESSES = int(env("FLASHDUTY_WEB_PROCESSES", "1"))

# E-mail as channels use it has its own settings per channel; this is for nothing else.
EMAIL_TIMEOUT = 8

# ---- django-q2: three resident tasks run the timers and the deliveries (flashduty/broker.py) ----
DRAINS = int(env("FLASHDUTY_DRAINS", "2"))
DRAIN_THREADS = int(env("FLASHDUTY_DRAIN_THREADS", "64"))
WEB_THREADS = int(env("FLASHDUTY_WEB_THREADS", "12"))
# Seconds a resident works before its successor takes over. Whoever comes in the moment of a change-over waits for it, 100 ms and more: with 20 s
# that was one alert in a hundred at 20 a second. What hangs is found by its silence, however long the stint.
STINT = 120.0
# Slots of a node -> the task that fills one, and its arguments.
RESIDENTS = {
    "intake": ("escalation.tasks.intake", ()),
    "engine": ("escalation.tasks.engine", ()),
} | {f"drain-{number}": ("channels_app.tasks.drain", (f"drain-{number}",)) for number in range(DRAINS)}
Q_CLUSTER = {
    "name": "flashduty",
    "broker_class": "flashduty.broker.RowsBroker",
    "workers": len(RESIDENTS) + 2,  # residents + 2, so a long prune never takes a timer's place
    "timeout": int(STINT) + 8 + 10 + 2,  # stint + longest provider timeout + 10
    "recycle": 10**9,  # a worker that ends, for whatever reason, is a death to the supervisor
    "retry": 2 * int(STINT),
    "queue_limit": 4,
    "save_limit": -1,  # our rows are the record; above 0 every task would lock all result rows
    "max_attempts": 1,
    "ack_failures": True,
    "catch_up": False,
    "guard_cycle": 0.5,
    "log_level": "WARNING",
    "label": "Background jobs",
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],  # each door names its own; never a session cookie
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Flashduty, self-hosted",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "POSTPROCESSING_HOOKS": ["flashduty.api.schema.as_called"],
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "filters": {"links": {"()": "flashduty.logs.WithoutLinks"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["links"]}},
    "root": {"handlers": ["console"], "level": env("LOG_LEVEL", "WARNING" if TEST else "INFO")},
    "loggers": {
        "django-q": {"level": "WARNING"},  # six lines an alert at INFO
        "django.request": {"level": "ERROR"},
        "urllib3": {"level": "ERROR"},  # its warnings print URLs, and a bot's URL is its secret
    },
}

UNFOLD = {
    "SITE_TITLE": "Flashduty",
    "SITE_HEADER": "Flashduty, self-hosted",
    "SITE_URL": reverse_lazy("admin:index"),
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "SITE_SYMBOL": "bolt",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("web/icon.svg")}],
    "DASHBOARD_CALLBACK": "flashduty.console.menu.dashboard",
    "SIDEBAR": {"show_search": True, "navigation": "flashduty.console.menu.navigation"},
}
