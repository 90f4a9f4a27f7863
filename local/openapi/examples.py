"""A request worth reading to each operation that takes a body. The tests send them."""

from typing import Any

EXAMPLES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/api-keys"): {"name": "Nightly export", "scopes": ["read"]},
    ("POST", "/v1/billing/checkout"): {
        "pack_id": "pack_500",
        "success_url": "https://app.example.com/thanks",
        "cancel_url": "https://app.example.com/prices",
    },
    ("POST", "/v1/billing/portal"): {"return_url": "https://app.example.com/account"},
    ("POST", "/v1/credits/debits"): {
        "operation": "ai_image_generation",
        "quantity": 2,
        "details": {"prompt_id": "p_42"},
    },
    ("POST", "/v1/credits/debits/<debit_id>/refunds"): {"reason": "The image came out empty"},
    ("POST", "/v1/credits/holds"): {"operation": "ai_text_chat", "quantity": 10, "expires_in": 600},
    ("POST", "/v1/credits/holds/<hold_id>/settle"): {"quantity": 7},
    ("PUT", "/v1/credits/low-balance"): {"threshold": 20},
    ("POST", "/v1/admin/credits/<organization_id>/adjustments"): {
        "amount": 50,
        "reason": "Sorry for Tuesday",
    },
    ("POST", "/v1/admin/plans"): {
        "key": "pro_2027",
        "tier": "pro",
        "name": "Pro",
        "credits": 1200,
    },
    ("PATCH", "/v1/admin/plans/<plan_key>"): {"credits": 1500},
    ("PUT", "/v1/admin/feature-costs"): {"ai_text_chat": 1, "ai_image_generation": 4},
    ("POST", "/v1/admin/service-keys"): {
        "name": "Workers",
        "scopes": ["read", "credits:settle", "generations:finish"],
    },
    ("PATCH", "/v1/settings"): {"theme": "dark", "language": "de-AT", "timezone": "Europe/Vienna"},
    ("POST", "/v1/organizations"): {"name": "Tea and Sons", "description": "Sells leaves, by weight"},
    ("PATCH", "/v1/organizations/<organization_id>"): {"name": "Tea", "timezone": "Asia/Kolkata"},
    ("POST", "/v1/organizations/<organization_id>/transfer"): {
        "user_id": "01890a5d-ac96-774b-bcce-b302099a8057"
    },
    ("PATCH", "/v1/organizations/<organization_id>/members/<user_id>"): {"role": "editor"},
    ("POST", "/v1/organizations/<organization_id>/invitations"): {
        "email": "bob@example.com",
        "role": "editor",
    },
    ("POST", "/v1/projects"): {
        "title": "A shop for tea",
        "description": "Sells leaves, by weight",
        "kind": "web",
        "tags": ["shop"],
    },
    ("PATCH", "/v1/projects/<project_id>"): {"title": "A shop for tea and cups", "tags": ["shop", "tea"]},
    ("POST", "/v1/projects/<project_id>/fork"): {"title": "A shop for coffee"},
    ("POST", "/v1/projects/<project_id>/shares"): {"email": "eve@example.com", "role": "editor"},
    ("POST", "/v1/invitations/accept"): {"token": "bpi_project_" + "0" * 43},
    ("POST", "/v1/projects/<project_id>/generations"): {
        "agent_type": "backend",
        "prompt": "Add a basket",
        "operation": "ai_text_chat",
    },
    ("POST", "/v1/generations/<generation_id>/heartbeat"): {
        "lock_token": "the one that starting it answered"
    },
    ("POST", "/v1/generations/<generation_id>/fail"): {
        "lock_token": "the one that starting it answered",
        "error_message": "The model did not answer",
    },
    ("POST", "/v1/generations/<generation_id>/complete"): {
        "lock_token": "the one that starting it answered",
        "response": "There is a basket now.",
        "tokens_used": 1830,
    },
    ("POST", "/v1/projects/<project_id>/files"): {
        "files": [{"path": "src/basket.ts", "content": "export const basket = [];\n"}],
        "message": "A basket",
    },
    ("POST", "/v1/projects/<project_id>/files/bundles"): {"bytes": 7_340_032},
    ("POST", "/v1/projects/<project_id>/versions/<version>/restore"): {
        "message": "Back to before the basket"
    },
    ("POST", "/v1/projects/<project_id>/uploads"): {
        "name": "logo.png",
        "content_type": "image/png",
        "bytes": 18_204,
    },
    ("POST", "/v1/projects/<project_id>/messages"): {"role": "user", "content": "Can it have a basket?"},
    ("POST", "/v1/projects/<project_id>/deployments"): {
        "type": "eas-build",
        "platform": "all",
        "app_version": "1.4.0",
    },
    ("POST", "/v1/deployments/<deployment_id>/builds"): {
        "builds": [
            {"external_id": "3f1b2f5e-6c0c-4b5a-9a51-0f5a7c1f9f0e", "platform": "ios"},
            {"external_id": "b0a7c8f2-8f5d-4e0e-8a0b-0d9b7f2f6a11", "platform": "android"},
        ]
    },
    ("POST", "/v1/deployments/<deployment_id>/complete"): {
        "status": "successful",
        "web_url": "https://tea.example.com",
    },
    ("PUT", "/v1/integrations/<integration_type>"): {
        "config": {"access_token": "the-token-that-expo.dev-gave", "username": "acme"},
    },
    ("POST", "/v1/integrations/supabase/connect"): {"scope": "organization"},
    ("POST", "/v1/integrations/supabase/callback"): {
        "code": "what Supabase added to the address",
        "state": "what was in authorize_url",
    },
    ("POST", "/v1/integrations/<integration_type>/rotate"): {"scope": "organization"},
}
