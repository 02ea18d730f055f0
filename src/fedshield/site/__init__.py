"""One site in one round: it trains, encodes and takes the sum. No message is known here."""
