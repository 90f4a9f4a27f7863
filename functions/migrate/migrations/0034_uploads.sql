-- migrate:up
-- Objects that came into the bucket's folder of uploads and that nobody was granted: a person looks.

CREATE TABLE storage.unknown_objects (
    s3_key text COLLATE "C" NOT NULL,
    s3_version text NOT NULL,
    bytes bigint NOT NULL CHECK (bytes >= 0),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (s3_key, s3_version)
);
CALL platform.protect('storage.unknown_objects');
GRANT INSERT ON storage.unknown_objects TO backplane_system;

-- migrate:down
DROP TABLE storage.unknown_objects;
