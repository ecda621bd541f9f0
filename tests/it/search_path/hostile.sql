-- Puts in front of PostgreSQL's functions and operators what fits their calls better. A function of pg_catalog comes first
-- only if it has exactly the types of a call: whoever takes arguments of any type, or needs a cast, gives way. In the place
-- of an aggregate there is a function, which is as good to see that it was meant.
--
-- The setting test.words has the names of the functions. The sequence counts calls, and no rollback undoes that.
SET search_path = pg_catalog, pg_temp;
SET check_function_bodies = off;
CREATE SEQUENCE public.called;
CREATE FUNCTION public.in_front() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.nextval('public.called');
    RAISE EXCEPTION 'a function on the path was called';
END
$$;

DO $$
DECLARE
    scalars CONSTANT text[] :=
        '{text,varchar,name,bigint,integer,smallint,boolean,timestamptz,interval,float8,numeric,jsonb,uuid,bytea,oid,regclass,regnamespace,xid}';
    arrays  CONSTANT text[] := ARRAY(SELECT t || '[]' FROM unnest(scalars) AS t);
    called  record;
    types   text;
BEGIN
    FOR called IN
        SELECT p.proname AS name, bool_or(p.provariadic <> 0 OR t.typname ~ '^any') AS takes_any
        FROM pg_proc AS p
        LEFT JOIN unnest(p.proargtypes::oid[]) AS a (type) ON true
        LEFT JOIN pg_type AS t ON t.oid = a.type
        WHERE p.pronamespace = 'pg_catalog'::regnamespace
            AND p.proname = ANY (string_to_array(current_setting('test.words'), ' '))
        GROUP BY p.proname
    LOOP
        FOR types IN
            SELECT one FROM unnest(scalars || arrays || '{record,timestamp}'::text[]) AS one
            UNION ALL
            SELECT one || ',' || two FROM unnest(scalars) AS one, unnest(scalars) AS two
            UNION ALL
            SELECT one || ',' || two FROM unnest(scalars || arrays) AS one, unnest(scalars || arrays) AS two
            WHERE called.takes_any AND (one ~ ']' OR two ~ ']')
            UNION ALL
            SELECT 'text,' || two || ',' || three FROM unnest(scalars) AS two, unnest(scalars) AS three
            WHERE called.takes_any
            UNION ALL
            SELECT 'text,uuid,oid,numeric' WHERE called.takes_any
        LOOP
            EXECUTE format('CREATE FUNCTION public.%I (%s) RETURNS boolean LANGUAGE plpgsql AS ''BEGIN RETURN public.in_front(); END''',
                called.name, types);
        END LOOP;
    END LOOP;
    FOR types IN
        SELECT one || ',' || two FROM unnest(scalars) AS one, unnest(scalars) AS two
        UNION ALL
        SELECT one || ',' || one || '[]' FROM unnest(scalars) AS one
        UNION ALL
        SELECT one || '[],' || one FROM unnest(scalars) AS one
        UNION ALL
        SELECT one || ',' || one FROM unnest(arrays) AS one
    LOOP
        EXECUTE format('CREATE FUNCTION public.in_between(%s) RETURNS boolean LANGUAGE sql AS ''SELECT public.in_front()''', types);
        FOR called IN
            SELECT name FROM unnest('{=,<>,<,<=,>,>=,+,-,*,/,%,||,&,|,->,->>,?,@>,~,~~}'::text[]) AS o (name)
        LOOP
            EXECUTE format('CREATE OPERATOR public.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.in_between)',
                called.name, split_part(types, ',', 1), split_part(types, ',', 2));
        END LOOP;
    END LOOP;
    -- Whether a role may call a function is checked when a plan that contains it is made ready, not when it runs.
    REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC;
END
$$;
