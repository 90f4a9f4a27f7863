-- migrate:up
-- Erasing a person: what of him goes from tables that nothing else may change, and the report of it.

-- A report has numbers and pseudonymous ids only.
CREATE TABLE platform.erasures (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    user_id uuid NOT NULL UNIQUE REFERENCES identity.users (id),
    organization_id uuid REFERENCES tenancy.organizations (id), -- his personal one; NULL: he had none
    actor text NOT NULL, -- who asked: clerk
    erased jsonb NOT NULL CHECK (jsonb_typeof(erased) = 'object'), -- rows by table
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX erasures_organization ON platform.erasures (organization_id);
CALL platform.protect('platform.erasures');
GRANT INSERT ON platform.erasures TO backplane_system;

ALTER TABLE platform.webhook_inbox ADD COLUMN person text;
COMMENT ON COLUMN platform.webhook_inbox.person IS 'Clerk''s id of the user whom the body tells of.';

GRANT UPDATE (metadata) ON billing.subscription_events TO backplane_system;
GRANT DELETE
    ON projects.settings, projects.app_settings, projects.site_settings, projects.favorites, projects.messages,
       projects.shares
    TO backplane_system;

-- Append-only but for one thing: details may be emptied, by the functions below, which say so in a
-- setting of their transaction. Whoever else may update these tables at all (their owner) is refused
-- as before, and nothing but details changes under the setting either.
CREATE FUNCTION platform.keep_all_but_details() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    IF coalesce(NEW.details, '{}') <> '{}' OR to_jsonb(NEW) - 'details' <> to_jsonb(OLD) - 'details' THEN
        RAISE EXCEPTION 'An erasure empties details of %.% and changes nothing else', TG_TABLE_SCHEMA, TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$;

DROP TRIGGER entries_append_only ON credits.entries;
CREATE TRIGGER entries_append_only BEFORE DELETE OR TRUNCATE ON credits.entries
    FOR EACH STATEMENT EXECUTE FUNCTION platform.refuse_change();
CREATE TRIGGER entries_unchanged BEFORE UPDATE ON credits.entries
    FOR EACH STATEMENT
    WHEN (current_setting('backplane.erasing', true) IS DISTINCT FROM 'details')
    EXECUTE FUNCTION platform.refuse_change();
CREATE TRIGGER entries_erased BEFORE UPDATE ON credits.entries
    FOR EACH ROW EXECUTE FUNCTION platform.keep_all_but_details();

DROP TRIGGER audit_log_append_only ON platform.audit_log;
CREATE TRIGGER audit_log_append_only BEFORE DELETE OR TRUNCATE ON platform.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION platform.refuse_change();
CREATE TRIGGER audit_log_unchanged BEFORE UPDATE ON platform.audit_log
    FOR EACH STATEMENT
    WHEN (current_setting('backplane.erasing', true) IS DISTINCT FROM 'details')
    EXECUTE FUNCTION platform.refuse_change();
CREATE TRIGGER audit_log_erased BEFORE UPDATE ON platform.audit_log
    FOR EACH ROW EXECUTE FUNCTION platform.keep_all_but_details();

-- Empties what callers wrote beside the numbers of the ledger: all of it in the person's own organisation,
-- in the others what he did himself. Answers how many entries, holds and refunds.
CREATE FUNCTION credits.erase_details(p_own uuid, p_organizations uuid[], p_actor text)
RETURNS TABLE (entries bigint, holds bigint, refunds bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    UPDATE credits.refunds AS r
    SET reason = ''
    FROM credits.entries AS e
    WHERE e.id = r.id
      AND r.organization_id = ANY (p_organizations)
      AND (r.organization_id = p_own OR e.actor = p_actor)
      AND r.reason <> '';
    GET DIAGNOSTICS refunds = ROW_COUNT;

    UPDATE credits.holds AS h
    SET details = NULL
    WHERE h.organization_id = ANY (p_organizations)
      AND (h.organization_id = p_own OR h.actor = p_actor)
      AND h.details IS NOT NULL;
    GET DIAGNOSTICS holds = ROW_COUNT;

    PERFORM set_config('backplane.erasing', 'details', true);
    UPDATE credits.entries AS e
    SET details = NULL
    WHERE e.organization_id = ANY (p_organizations)
      AND (e.organization_id = p_own OR e.actor = p_actor)
      AND e.details IS NOT NULL;
    GET DIAGNOSTICS entries = ROW_COUNT;
    PERFORM set_config('backplane.erasing', '', true);
    RETURN NEXT;
END
$$;

-- Empties the details of the audit log's rows of a person's own organisation, and of those in the others
-- that are about him. Answers how many.
CREATE FUNCTION platform.erase_audit_details(p_own uuid, p_organizations uuid[], p_target text) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_erased bigint;
BEGIN
    PERFORM set_config('backplane.erasing', 'details', true);
    UPDATE platform.audit_log
    SET details = '{}'
    WHERE (organization_id = p_own
           OR target = p_target AND (organization_id = ANY (p_organizations) OR organization_id IS NULL))
      AND details <> '{}';
    GET DIAGNOSTICS v_erased = ROW_COUNT;
    PERFORM set_config('backplane.erasing', '', true);
    RETURN v_erased;
END
$$;

GRANT EXECUTE ON FUNCTION
    credits.erase_details(uuid, uuid[], text), platform.erase_audit_details(uuid, uuid[], text)
    TO backplane_system;

-- migrate:down
DROP FUNCTION platform.erase_audit_details(uuid, uuid[], text);
DROP FUNCTION credits.erase_details(uuid, uuid[], text);
DROP TRIGGER audit_log_erased ON platform.audit_log;
DROP TRIGGER audit_log_unchanged ON platform.audit_log;
DROP TRIGGER audit_log_append_only ON platform.audit_log;
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON platform.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION platform.refuse_change();
DROP TRIGGER entries_erased ON credits.entries;
DROP TRIGGER entries_unchanged ON credits.entries;
DROP TRIGGER entries_append_only ON credits.entries;
CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON credits.entries
    FOR EACH STATEMENT EXECUTE FUNCTION platform.refuse_change();
DROP FUNCTION platform.keep_all_but_details();
REVOKE DELETE
    ON projects.settings, projects.app_settings, projects.site_settings, projects.favorites, projects.messages,
       projects.shares
    FROM backplane_system;
REVOKE UPDATE (metadata) ON billing.subscription_events FROM backplane_system;
ALTER TABLE platform.webhook_inbox DROP COLUMN person;
DROP TABLE platform.erasures;
