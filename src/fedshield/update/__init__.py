"""From a site's update to what travels, and from the opened mean to the next adapter."""
