/* A service on the default model in a directory of its own, and how tests speak to it. */
#ifndef LLMS_TESTS_SERVICE_RIG_H
#define LLMS_TESTS_SERVICE_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/array.h"
#include "kv/levels.h"
#include "service/service.h"

/* A new directory; in memory where there is a file system for it. rig_remove deletes it with all in it. */
void rig_directory(char directory[64]);
void rig_remove(const char *directory);
const char *rig_model(void); /* NULL: no model here, so skip */

struct service_options rig_options(const char *directory);       /* all that fits, level 16, two threads */
struct service *rig_open(const struct service_options *options); /* fails the test if it fails */

void rig_new(struct service *service, const char *owner, const char *system_prompt,
             char id[JOURNAL_ID_BYTES]);

/* Greedy, max_tokens, a reply to prompt: its text and the result. The text is the caller's to deinit. */
struct rig_reply {
    struct buffer text;
    struct call_result result;
};
struct call_params rig_params(const char *prompt, uint32_t max_tokens);
struct rig_reply rig_call(struct service *service, const char *owner, const char *id,
                          const struct call_params *params);
struct rig_reply rig_ask(struct service *service, const char *owner, const char *id, const char *prompt,
                         uint32_t max_tokens);
/* Collects a started call's text to its end and releases it. */
struct rig_reply rig_finish(struct call *call);
void rig_reply_deinit(struct rig_reply *reply);

/* A conversation that spans several chunks, and what the model answers to it when nothing disturbs it: with
 * the system prompt ([0]), and without ([1]). */
enum { RIG_TURNS = 5, RIG_REPLY = 20 };
extern const char *const rig_prompts[RIG_TURNS];
extern const char rig_system_prompt[];
void rig_reference_make(const char *owner, char *reference[2][RIG_TURNS]);
void rig_reference_free(char *reference[2][RIG_TURNS]);

/* What suites on one conversation share. For a test: a directory of its own, rig_home. For the group:
 * rig_me's reference, and nothing but errors in the log. */
extern char rig_home[64];
extern const char rig_me[], rig_other[]; /* owners */
extern char *rig_reference[2][RIG_TURNS];
int rig_setup(void **state);
int rig_teardown(void **state);
int rig_group_setup(void **state);
int rig_group_teardown(void **state);
struct service *rig_open_default(void); /* in rig_home */
struct context_info rig_info(struct service *service,
                             const char *id); /* of rig_me's; the caller's to deinit */
void rig_expect_turn(struct service *service, const char *id, int c, int t); /* turn t of rig_reference[c] */

/* A call that goes on for as long as the context lasts, unless an end token is drawn, which does happen:
 * tests that need one in its middle try again. */
struct call *rig_start_long(struct service *service, const char *owner, const char *id);
void rig_wait_for_text(struct call *call); /* until it is in its middle, or already over */

/* Asks and asserts that the reply is `expected`. */
void rig_expect(struct service *service, const char *owner, const char *id, const char *prompt,
                uint32_t max_tokens, const char *expected);

bool rig_stressed(void); /* the suite runs under LLMS_STRESS: what is resident is not what it would be */

#endif
