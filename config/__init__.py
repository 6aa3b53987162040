"""What is configured: settings, queues, the app, the transport."""
