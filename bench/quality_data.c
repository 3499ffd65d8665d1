/* Reading the conversations of llms-bench quality: a JSON object a line. See quality.h. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "quality.h"

/* A copy of an object's text; NULL where it has none. */
static char *text_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_string(value) ? mem_strdup(json_string_value(value)) : NULL;
}

static const char *role_of(const json_t *turn)
{
    const char *role = json_string_value(json_object_get(turn, "role"));
    return role ? role : "";
}

/* A system text or none, then user and assistant in turn. */
static int take_turns(const json_t *turns, struct quality_case *out)
{
    size_t count = json_array_size(turns), at = 0;
    const json_t *first = json_array_get(turns, 0);
    if (first && strcmp(role_of(first), "system") == 0) {
        out->system = text_of(first, "content");
        at = 1;
    } else {
        out->system = mem_strdup("");
    }
    if (!out->system || count == at || (count - at) % 2)
        return -EINVAL;
    out->turns = mem_calloc((count - at) / 2, sizeof *out->turns);
    for (; out->turns && at < count; at += 2) {
        const json_t *user = json_array_get(turns, at), *assistant = json_array_get(turns, at + 1);
        struct quality_turn *turn = &out->turns[out->turn_count++];
        turn->user = text_of(user, "content");
        turn->assistant = text_of(assistant, "content");
        if (strcmp(role_of(user), "user") != 0 || strcmp(role_of(assistant), "assistant") != 0 ||
            !turn->user || !turn->assistant)
            return -EINVAL;
    }
    return out->turns ? 0 : -ENOMEM;
}

static int take_queries(const json_t *queries, struct quality_case *out)
{
    size_t count = json_array_size(queries);
    out->queries = mem_calloc(count + 1, sizeof *out->queries);
    for (size_t i = 0; out->queries && i < count; i++) {
        const json_t *from = json_array_get(queries, i);
        struct quality_query *query = &out->queries[out->query_count++];
        query->kind = text_of(from, "kind");
        query->question = text_of(from, "question");
        query->answer = text_of(from, "answer");
        query->reply = text_of(from, "reply");
        json_int_t distance = json_integer_value(json_object_get(from, "distance_tokens"));
        query->distance = distance > 0 ? (uint64_t)distance : 0;
        if (!query->kind || !query->question || !query->answer || !*query->answer)
            return -EINVAL;
    }
    return out->queries ? 0 : -ENOMEM;
}

static int take_case(const char *line, struct quality_case *out)
{
    json_t *root = json_loads(line, 0, NULL);
    int code = json_is_object(root) ? 0 : -EINVAL;
    if (code == 0)
        code = take_turns(json_object_get(root, "turns"), out);
    if (code == 0)
        code = take_queries(json_object_get(root, "queries"), out);
    if (code == 0 && !(out->id = text_of(root, "id")))
        code = -EINVAL;
    json_decref(root);
    return code;
}

static void case_deinit(struct quality_case *one)
{
    for (size_t i = 0; i < one->turn_count; i++) {
        mem_free(one->turns[i].user);
        mem_free(one->turns[i].assistant);
    }
    for (size_t i = 0; i < one->query_count; i++) {
        mem_free(one->queries[i].kind);
        mem_free(one->queries[i].question);
        mem_free(one->queries[i].answer);
        mem_free(one->queries[i].reply);
    }
    mem_free(one->turns);
    mem_free(one->queries);
    mem_free(one->id);
    mem_free(one->system);
}

void quality_data_deinit(struct quality_data *data)
{
    for (size_t i = 0; i < data->count; i++)
        case_deinit(&data->cases[i]);
    mem_free(data->cases);
    *data = (struct quality_data){0};
}

int quality_data_read(const char *path, size_t limit, struct quality_data *out, struct error *error)
{
    char *line = NULL;
    size_t capacity = 0;
    int code = 0;
    *out = (struct quality_data){0};
    FILE *file = fopen(path, "re");
    if (!file)
        return error_set(error, -errno, "%s: %s", path, strerror(errno));
    while (out->count < limit && code == 0 && getline(&line, &capacity, file) >= 0) {
        struct quality_case *more = mem_realloc(out->cases, (out->count + 1) * sizeof *more);
        if (!more) {
            code = error_set(error, -ENOMEM, "out of memory");
            break;
        }
        out->cases = more;
        more[out->count] = (struct quality_case){0};
        if (take_case(line, &more[out->count++]) < 0)
            code =
                error_set(error, -EINVAL, "%s: line %zu is no conversation with questions", path, out->count);
    }
    if (code == 0 && ferror(file))
        code = error_set(error, -EIO, "%s: cannot be read", path);
    else if (code == 0 && out->count == 0)
        code = error_set(error, -EINVAL, "%s: there is no conversation in it", path);
    free(line);
    fclose(file);
    if (code < 0)
        quality_data_deinit(out);
    return code;
}
