#include "base/dtype.h"

#include <strings.h>

static const struct dtype_info infos[] = {
    {DTYPE_F32, "F32", 1, 4},       {DTYPE_F16, "F16", 1, 2},       {DTYPE_BF16, "BF16", 1, 2},
    {DTYPE_Q8_0, "Q8_0", 32, 34},   {DTYPE_Q4_0, "Q4_0", 32, 18},   {DTYPE_Q4_1, "Q4_1", 32, 20},
    {DTYPE_Q5_0, "Q5_0", 32, 22},   {DTYPE_Q5_1, "Q5_1", 32, 24},   {DTYPE_Q4_K, "Q4_K", 256, 144},
    {DTYPE_Q5_K, "Q5_K", 256, 176}, {DTYPE_Q6_K, "Q6_K", 256, 210},
};

const struct dtype_info *dtype_list(size_t *count)
{
    *count = sizeof infos / sizeof *infos;
    return infos;
}

const struct dtype_info *dtype_info(uint32_t type)
{
    for (size_t i = 0; i < sizeof infos / sizeof *infos; i++)
        if ((uint32_t)infos[i].type == type)
            return &infos[i];
    return NULL;
}

const struct dtype_info *dtype_by_name(const char *name)
{
    for (size_t i = 0; i < sizeof infos / sizeof *infos; i++)
        if (strcasecmp(infos[i].name, name) == 0)
            return &infos[i];
    return NULL;
}

const char *dtype_unsupported_name(uint32_t type)
{
    static const struct {
        uint32_t type;
        const char *name;
    } others[] = {{9, "Q8_1"},    {10, "Q2_K"},    {11, "Q3_K"},  {15, "Q8_K"},   {16, "IQ2_XXS"},
                  {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"},
                  {22, "IQ2_S"},  {23, "IQ4_XS"},  {24, "I8"},    {25, "I16"},    {26, "I32"},
                  {27, "I64"},    {28, "F64"},     {29, "IQ1_M"}, {34, "TQ1_0"},  {35, "TQ2_0"},
                  {39, "MXFP4"}};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (others[i].type == type)
            return others[i].name;
    return "unknown";
}

size_t dtype_row_bytes(enum dtype type, size_t values)
{
    const struct dtype_info *info = dtype_info((uint32_t)type);
    return info ? values / info->block_values * info->block_bytes : 0;
}
