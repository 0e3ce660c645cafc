"""The ids of the page's components: one enum per page, so that a misspelt id is an error at import."""

from __future__ import annotations

from enum import StrEnum


class Shell(StrEnum):
    """What stands on every page."""

    ACCOUNT = "shell-account"
    PLACE = "shell-place"


class Home(StrEnum):
    """Upload and list."""

    UPLOADER = "home-uploader"
    TITLE = "home-title"
    OPTION = "home-option"
    ANALYSE = "home-analyse"
    PROBLEM = "home-problem"
    LIST = "home-list"
    SAMPLES = "home-samples"
    CLOCK = "home-clock"
    GO = "home-go"
    RENAME = "home-rename"
    RENAME_TEXT = "home-rename-text"
    RENAME_SAVE = "home-rename-save"
    DELETE = "home-delete"
    DELETE_CONFIRM = "home-delete-confirm"
    CHOSEN = "home-chosen"
    ROW_RENAME = "home-row-rename"
    ROW_DELETE = "home-row-delete"


class Analysis(StrEnum):
    """One analysis."""

    PAGE = "analysis-page"
    BODY = "analysis-body"
    STREAM = "analysis-stream"
    PROGRESS = "analysis-progress"
    CANCEL = "analysis-cancel"
    RERUN = "analysis-rerun"
    PROBLEM = "analysis-problem"
    VIEW = "view-state"
    GROUP = "analysis-group"
    MATRIX = "analysis-matrix"
    DETAILS = "analysis-details"
    DETAILS_OPEN = "analysis-details-open"


class Symmetry(StrEnum):
    """The symmetry report of one analysis."""

    PAGE = "symmetry-page"
    BODY = "symmetry-body"
    VIEW = "symmetry-view"
    PANEL = "symmetry-panel"
    GRAPH = "symmetry-graph"
    STREAM = "symmetry-stream"
    PROGRESS = "symmetry-progress"


class WhatIf(StrEnum):
    """The pruning what-if."""

    KEEP = "whatif-keep"
    CURVE = "whatif-curve"
    NUMBERS = "whatif-numbers"
    MEASURE = "whatif-measure"
    STREAM = "whatif-stream"
    STATE = "whatif-state"


class WhatIfPage(StrEnum):
    """The what-if session of one analysis."""

    PAGE = "session-page"
    BODY = "session-body"
    SESSION = "session"
    STREAM = "session-stream"
    PROGRESS = "session-progress"


class Sharing(StrEnum):
    """Share and export."""

    SHARE_OPEN = "share-open"
    SHARE = "share-dialog"
    SHARE_CREATE = "share-create"
    SHARE_NEW = "share-new"
    SHARE_LIST = "share-list"
    SHARE_REVOKE = "share-revoke"
    EXPORT_OPEN = "export-open"
    EXPORT = "export-dialog"
    EXPORT_ORDER = "export-order"
    EXPORT_START = "export-start"
    EXPORT_STREAM = "export-stream"
    EXPORT_LIST = "export-list"


class Account(StrEnum):
    """Personal API tokens."""

    NAME = "account-name"
    CREATE = "account-create"
    NEW = "account-new"
    LIST = "account-list"
    REVOKE = "account-revoke"
