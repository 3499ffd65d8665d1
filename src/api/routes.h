/* The handlers of the routes: each reads the exchange's body and sets its answer. */
#ifndef LLMS_API_ROUTES_H
#define LLMS_API_ROUTES_H

#include "api/exchange.h"

/* system.c */
void route_health(struct exchange *exchange);
void route_status(struct exchange *exchange);
void route_budget(struct exchange *exchange);
void route_metrics(struct exchange *exchange);
void route_models(struct exchange *exchange);
void route_tokenize(struct exchange *exchange);
void route_detokenize(struct exchange *exchange);

/* contexts.c */
void route_context_create(struct exchange *exchange);
void route_context_list(struct exchange *exchange);
void route_context_get(struct exchange *exchange);
void route_context_turns(struct exchange *exchange);
void route_context_fork(struct exchange *exchange);
void route_context_delete(struct exchange *exchange);

/* calls.c */
void route_call(struct exchange *exchange);
void route_prepare(struct exchange *exchange);

#endif
