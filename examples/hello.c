/* A first program against libllms: asks its question, prints the reply as it comes, says what the switch to
 * its context cost. Run it again with the id it prints, and the conversation goes on.
 *
 *     cc hello.c $(pkg-config --cflags --libs llms) -o hello
 *     ./hello "Remember that my locker code is 4711."
 *     ./hello "What is my locker code?" ID */
#include <llms.h>
#include <stdio.h>

static int print_piece(void *user, const char *text, size_t length)
{
    (void)user;
    fwrite(text, 1, length, stdout);
    fflush(stdout);
    return 0; /* anything else cancels the call */
}

int main(int argc, char **argv)
{
    const char *question = argc > 1 ? argv[1] : "Remember that my locker code is 4711.";
    struct llms_call_result result;
    struct llms *llms;
    char id[LLMS_ID_BYTES];

    int error = llms_bind("hello", NULL, &llms);
    if (error < 0) {
        fprintf(stderr, "hello: %s\n", llms_strerror(error));
        return 1;
    }
    if (argc > 2)
        snprintf(id, sizeof id, "%s", argv[2]);
    else
        error = llms_context_new(llms, "hello", NULL, id);
    if (error == 0)
        error = llms_call(llms, id, question, NULL, print_piece, NULL, &result);
    if (error == 0)
        printf("\n[context %s usable after %.1f ms, first token after %.1f ms]\n", id, result.switch_ms,
               result.ttft_ms);
    else
        fprintf(stderr, "hello: %s\n", llms_last_error(llms));
    llms_unbind(llms);
    return error < 0;
}
