#include "support/service_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/memory.h"

const char *const rig_prompts[RIG_TURNS] = {
    "Hello! I want to book a table for two people on Friday.", "Remember this note: the door code is 4711.",
    "What kind of food do they serve there?", "What was the door code in my note?",
    "Thank you, please confirm the booking."};
const char rig_system_prompt[] = "You are a helpful assistant who books tables and keeps notes.";

void rig_directory(char directory[64])
{
    snprintf(directory, 64, "%s/llms-service-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (!mkdtemp(directory))
        fail_msg("cannot make %s", directory);
}

void rig_remove(const char *directory)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s' 2>/dev/null", directory);
    int code = -1;
    for (int i = 0; i < 20 && code != 0; i++) /* a swap-out may just be putting a file there */
        code = system(command);
    assert_int_equal(code, 0);
}

const char *rig_model(void)
{
    static const char *const paths[] = {"models/pocket-q8_0.gguf", "../shared/model/pocket-q8_0.gguf"};
    for (int i = 0; i < 2; i++)
        if (access(paths[i], R_OK) == 0)
            return paths[i];
    return NULL;
}

struct service_options rig_options(const char *directory)
{
    return (struct service_options){.model_path = rig_model(),
                                    .state_directory = directory,
                                    .kv_budget_bytes = UINT64_C(256) << 20,
                                    .kv_levels = LEVELS_16,
                                    .threads = 2};
}

struct service *rig_open(const struct service_options *options)
{
    struct service *service = NULL;
    struct error error = {0};
    if (service_open(options, &service, &error) < 0)
        fail_msg("%s", error.text);
    return service;
}

void rig_new(struct service *service, const char *owner, const char *system_prompt, char id[JOURNAL_ID_BYTES])
{
    struct context_info info;
    struct error error = {0};
    if (service_context_new(service, owner, NULL, system_prompt, &info, &error) < 0)
        fail_msg("%s", error.text);
    memcpy(id, info.record.id, JOURNAL_ID_BYTES);
    context_info_deinit(&info);
}

struct call_params rig_params(const char *prompt, uint32_t max_tokens)
{
    struct call_params params = {.prompt = prompt,
                                 .prompt_length = strlen(prompt),
                                 .max_tokens = max_tokens,
                                 .sampling = sampler_defaults};
    params.sampling.temperature = 0;
    return params;
}

struct rig_reply rig_finish(struct call *call)
{
    struct rig_reply reply = {0};
    while (call_wait(call, 1000, &reply.text) != CALL_DONE)
        ;
    reply.result = *call_result(call);
    call_release(call);
    if (!reply.text.data) /* "" for comparing */
        assert_int_equal(buffer_append(&reply.text, "", 0), 0);
    return reply;
}

struct rig_reply rig_call(struct service *service, const char *owner, const char *id,
                          const struct call_params *params)
{
    struct call *call = NULL;
    struct error error = {0};
    if (service_call_start(service, owner, id, params, &call, &error) < 0)
        fail_msg("%s", error.text);
    return rig_finish(call);
}

struct rig_reply rig_ask(struct service *service, const char *owner, const char *id, const char *prompt,
                         uint32_t max_tokens)
{
    struct call_params params = rig_params(prompt, max_tokens);
    struct rig_reply reply = rig_call(service, owner, id, &params);
    if (reply.result.code < 0)
        fail_msg("%s", reply.result.error.text);
    return reply;
}

void rig_reply_deinit(struct rig_reply *reply)
{
    buffer_deinit(&reply->text);
}

void rig_expect(struct service *service, const char *owner, const char *id, const char *prompt,
                uint32_t max_tokens, const char *expected)
{
    struct rig_reply reply = rig_ask(service, owner, id, prompt, max_tokens);
    assert_string_equal(reply.text.data, expected);
    rig_reply_deinit(&reply);
}

bool rig_stressed(void)
{
    return getenv("LLMS_STRESS") != NULL;
}

void rig_reference_make(const char *owner, char *reference[2][RIG_TURNS])
{
    char directory[64], id[JOURNAL_ID_BYTES];
    rig_directory(directory);
    struct service_options options = rig_options(directory);
    struct service *service = rig_open(&options);
    for (int c = 0; c < 2; c++) {
        rig_new(service, owner, c ? NULL : rig_system_prompt, id);
        for (int t = 0; t < RIG_TURNS; t++) {
            struct rig_reply reply = rig_ask(service, owner, id, rig_prompts[t], RIG_REPLY);
            reference[c][t] = mem_strdup(reply.text.data);
            rig_reply_deinit(&reply);
        }
    }
    service_close(service);
    rig_remove(directory);
}

void rig_reference_free(char *reference[2][RIG_TURNS])
{
    for (int c = 0; c < 2; c++)
        for (int t = 0; t < RIG_TURNS; t++)
            mem_free(reference[c][t]);
}

struct call *rig_start_long(struct service *service, const char *owner, const char *id)
{
    static uint64_t seed;
    struct call *call = NULL;
    struct call_params params = rig_params("Tell me everything about the restaurants there.", 0);
    params.sampling.temperature = 10; /* nearly all tokens alike */
    params.sampling.top_k = 0;
    params.sampling.top_p = 1;
    params.sampling.seed = ++seed;
    assert_int_equal(service_call_start(service, owner, id, &params, &call, NULL), 0);
    return call;
}

void rig_wait_for_text(struct call *call)
{
    struct buffer text = {0};
    while (call_wait(call, 1000, &text) == CALL_WAITING)
        ;
    buffer_deinit(&text);
}

/* ---- a suite's ---- */

char rig_home[64];
const char rig_me[] = "1000/tests", rig_other[] = "1000/other";
char *rig_reference[2][RIG_TURNS];

int rig_setup(void **state)
{
    (void)state;
    rig_directory(rig_home);
    return 0;
}

int rig_teardown(void **state)
{
    (void)state;
    rig_remove(rig_home);
    return 0;
}

int rig_group_setup(void **state)
{
    (void)state;
    log_set_level(LOG_LEVEL_ERROR);
    rig_reference_make(rig_me, rig_reference);
    return 0;
}

int rig_group_teardown(void **state)
{
    (void)state;
    rig_reference_free(rig_reference);
    return 0;
}

struct service *rig_open_default(void)
{
    struct service_options options = rig_options(rig_home);
    return rig_open(&options);
}

struct context_info rig_info(struct service *service, const char *id)
{
    struct context_info info;
    assert_int_equal(service_context_get(service, rig_me, id, &info, NULL), 0);
    return info;
}

void rig_expect_turn(struct service *service, const char *id, int c, int t)
{
    rig_expect(service, rig_me, id, rig_prompts[t], RIG_REPLY, rig_reference[c][t]);
}
