"""Whether a site is ready for a run, before one."""
