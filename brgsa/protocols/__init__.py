"""Evaluation protocols: what is measured, on what, and how its uncertainty is told, each a YAML file beside this one."""

from __future__ import annotations

from brgsa.protocols.protocol import DEFAULT, SHIPPED, BootstrapChoice, Prompts, Protocol, load_protocol

__all__ = ["DEFAULT", "SHIPPED", "BootstrapChoice", "Prompts", "Protocol", "load_protocol"]
