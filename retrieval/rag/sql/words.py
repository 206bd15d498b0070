"""What a query may be made of. Everything else is refused by its name, whatever a new version of DuckDB brings.

Left out on purpose: what reads files, settings, variables or the catalogue; what waits, logs or draws numbers; and what
makes long text or lists of short ones (``repeat``, ``lpad``, ``replace``, ``range`` …), whose memory no limit of the
database covers and whose work no interrupt stops.
"""

from __future__ import annotations

__all__ = [
    "AGGREGATES_OF_TEXT",
    "CLASSES",
    "CONCATENATIONS",
    "FORMATS",
    "FUNCTIONS",
    "GATHERED",
    "NODES",
    "OF_MANY",
    "OF_THE_SESSION",
    "PATTERNS",
    "TYPES",
]

NODES = frozenset(
    """
    SELECT_NODE SET_OPERATION_NODE CTE_NODE BASE_TABLE JOIN SUBQUERY EMPTY EXPRESSION_LIST TABLE_FUNCTION
    ORDER_MODIFIER LIMIT_MODIFIER LIMIT_PERCENT_MODIFIER DISTINCT_MODIFIER ASCENDING DESCENDING ORDER_DEFAULT
    """.split()
)
"""Kinds of queries, tables and clauses, as DuckDB's parser names them. Queries that write, recursion, ``SHOW``,
``DESCRIBE`` and ``SUMMARIZE`` have other names."""

CLASSES = frozenset(
    """
    COLUMN_REF CONSTANT COMPARISON CONJUNCTION FUNCTION OPERATOR CASE CAST BETWEEN STAR SUBQUERY WINDOW COLLATE TYPE
    """.split()
)
"""Classes of expressions: no parameters, no lambdas."""

TYPES = frozenset(
    """
    BOOLEAN BOOL TINYINT SMALLINT INTEGER INT BIGINT HUGEINT UTINYINT USMALLINT UINTEGER UBIGINT FLOAT REAL DOUBLE
    DECIMAL NUMERIC VARCHAR TEXT STRING CHAR BPCHAR DATE TIME TIMESTAMP DATETIME INTERVAL
    """.split()
)

CONCATENATIONS = frozenset({"||", "concat", "concat_ws"})
AGGREGATES_OF_TEXT = frozenset({"string_agg", "group_concat", "listagg", "array_to_string"})
GATHERED = frozenset({"string_agg", "group_concat", "listagg", "list", "array_agg"})
"""Their value is as long as the table. It may be shown, and nothing may be made of it: a copy in every row of something
else is memory that no limit of the database covers, and work that no interrupt stops."""
OF_MANY = {"min": 1, "max": 1, "arg_min": 2, "arg_max": 2, "min_by": 2, "max_by": 2}
"""With more arguments than these they make lists of any length."""
PATTERNS = frozenset({"~", "regexp_matches"})
FORMATS = frozenset({"strftime"})
"""Their format may only be a short text of the query's own: a long one would write long texts."""
OF_THE_SESSION = frozenset("current_user session_user user current_role current_catalog current_schema".split())
"""Names that read like columns and tell of the session."""

FUNCTIONS = frozenset(
    """
    + - * / // % ** ^ ~~ !~~ ~~* !~~* like_escape not_like_escape ilike_escape not_ilike_escape = != <> < > <= >=
    lower upper lcase ucase length len strlen char_length trim ltrim rtrim substring substr left right contains prefix
    suffix starts_with ends_with instr strpos position split_part strip_accents nullif ifnull coalesce
    if row
    list_value list_contains list_has list_has_any list_has_all array_contains array_has array_length list_extract
    list_sort list_distinct list_unique unnest
    abs ceil ceiling floor round trunc sqrt ln log log2 log10 exp pow power mod sign greatest least isnan isfinite
    year month day quarter week hour minute second dayofweek weekday isodow dayofyear dayname monthname
    date_part datepart date_trunc datetrunc date_diff datediff age epoch
    to_timestamp make_date last_day to_days to_weeks to_months to_years to_hours
    to_minutes to_seconds now today current_date get_current_timestamp
    count count_star sum avg mean min max median mode any_value first last arg_max arg_min max_by min_by stddev
    stddev_samp stddev_pop variance var_samp var_pop quantile quantile_cont quantile_disc approx_count_distinct
    bool_and bool_or count_if countif corr list array_agg
    row_number rank dense_rank percent_rank cume_dist ntile lag lead first_value last_value nth_value
    """.split()
) | CONCATENATIONS | AGGREGATES_OF_TEXT | PATTERNS | FORMATS  # fmt: skip
