"""What is written and read: run directories, atomic writing, validated reading, and the schemas of both."""
