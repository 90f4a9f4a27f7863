"""Every sender whose events the inbox records, and how they are read back and applied.

One table for all, because the arrival of one sender's subject replays what another's events
waited for: a Clerk user may be what a Stripe checkout is parked for.
"""

from backplane import (
    clerk_effects,
    eas_callbacks,
    github_callbacks,
    stripe_effects,
    stripe_events,
    stripe_refetch,
    vercel_callbacks,
)
from backplane.inbox import Sender, Senders

SENDERS: Senders = {
    "clerk": Sender(clerk_effects.parse, clerk_effects.EFFECTS),
    "eas": Sender(eas_callbacks.parse, eas_callbacks.EFFECTS),
    "github": Sender(github_callbacks.parse, github_callbacks.EFFECTS),
    "stripe": Sender(
        stripe_events.parse, stripe_effects.EFFECTS, stripe_refetch.fetch, stripe_effects.AT_ONCE
    ),
    "vercel": Sender(vercel_callbacks.parse, vercel_callbacks.EFFECTS),
}
