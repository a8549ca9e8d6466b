"""Networks: encoders by name, fusion, the multi-modal teacher, momentum copies and queues."""
