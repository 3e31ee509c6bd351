"""Page: report.html, what a run was and what came of it, in one file that loads nothing from elsewhere."""

from exafield.page.build import page, write
from exafield.page.contents import Contents, PageError, read

__all__ = ["Contents", "PageError", "page", "read", "write"]
