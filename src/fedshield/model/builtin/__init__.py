"""Base models that FedShield makes itself, where no model hub can be reached."""
