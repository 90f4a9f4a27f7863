-- migrate:up
-- How large a stored image is, in pixels, where its header says so.
ALTER TABLE storage.objects ADD COLUMN width bigint, ADD COLUMN height bigint;
-- Every row has NULL.
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE storage.objects ADD CONSTRAINT objects_size CHECK ((width IS NULL) = (height IS NULL) AND width > 0 AND height > 0);

-- migrate:down
ALTER TABLE storage.objects DROP COLUMN width, DROP COLUMN height;
