"""FedShield: federated fine-tuning of large language models under encrypted aggregation."""

__version__ = "0.1.0"
