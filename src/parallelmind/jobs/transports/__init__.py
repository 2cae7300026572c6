"""What carries messages between the coordinator and the workers, a module for each launcher."""
