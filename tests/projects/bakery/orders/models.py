"""What is ordered."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """A number of loaves, and whether they are baked."""

    loaves = models.IntegerField()
    is_baked = models.BooleanField(default=False)

    class Meta:
        app_label = "orders"
