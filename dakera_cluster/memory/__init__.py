"""What it means to remember: the services behind the API. They know rows and searches, not nodes."""
