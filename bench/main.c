/* llms-bench: measures and makes what is measured. This file picks the command. */
#include <stdio.h>
#include <string.h>

#include "bench.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"speed", bench_speed, "prompt and generation tokens a second, beside a peer if wanted"},
    {"switch", bench_switch, "what going from one context to another costs under one KV budget"},
    {"quality", bench_quality, "what keeping KV in fewer bits costs in perplexity and recall"},
    {"trace", bench_trace, "the paper's trace of calls, replayed on a daemon"},
    {"regimes", bench_regimes, "where reading or recomputing or both bring a context back soonest"},
    {"chunks", bench_chunks, "what chunks of other sizes would read"},
    {"logits", bench_logits, "the engine's own numbers after some tokens"},
    {"tokens", bench_tokens, "the token ids of a text"},
    {"model", bench_model, "write a GGUF with random weights in the shape of a known model"},
    {"kernels", bench_kernels, "measure matrix products by weight type"},
};

enum { COMMANDS = sizeof commands / sizeof *commands };

static void print_usage(FILE *out)
{
    fputs("usage: llms-bench COMMAND [OPTION]...\n\n", out);
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].help);
    fputs("\nllms-bench COMMAND --help tells its options.\n"
          "Exit status: 0, 1 for failure, 2 for bad usage.\n",
          out);
}

static int run(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_usage(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("llms-bench " LLMS_VERSION);
        return 0;
    }
    for (size_t i = 0; i < COMMANDS; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "llms-bench: unknown %s '%s' (see llms-bench --help)\n",
            argv[1][0] == '-' ? "option" : "command", argv[1]);
    return 2;
}

int main(int argc, char **argv)
{
    int status = run(argc, argv);
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == 0) {
        perror("llms-bench: standard output");
        status = 1;
    }
    return status;
}
