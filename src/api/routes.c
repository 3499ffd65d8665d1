#include "api/routes.h"

/* What the daemon answers to; docs/HTTP.md says it in words. */
const struct route api_routes[] = {
    {"GET", "/health", route_health, .open = true},
    {"GET", "/metrics", route_metrics},
    {"GET", "/v1/status", route_status},
    {"POST", "/v1/budget", route_budget},
    {"GET", "/v1/models", route_models},
    {"POST", "/v1/tokenize", route_tokenize},
    {"POST", "/v1/detokenize", route_detokenize},
    {"POST", "/v1/contexts", route_context_create},
    {"GET", "/v1/contexts", route_context_list},
    {"GET", "/v1/contexts/{id}", route_context_get},
    {"DELETE", "/v1/contexts/{id}", route_context_delete},
    {"GET", "/v1/contexts/{id}/turns", route_context_turns},
    {"POST", "/v1/contexts/{id}/fork", route_context_fork},
    {"POST", "/v1/contexts/{id}/prepare", route_prepare},
    {"POST", "/v1/contexts/{id}/calls", route_call},
};
const size_t api_route_count = sizeof api_routes / sizeof *api_routes;
