"""The agent in parts, for readers and their tools; nobody imports it from here. The operator joins the parts
into one file, tokenbudget_agent.py, in the order that src/litellm/agent.rs names, without what one part
imports from another."""
