/* Recursive least squares, robust. Everything is divided by the time predicted, or the time taken if that is
 * more: short observations count as much as long ones, and neither a stall nor a start from rates far too low
 * passes for much knowledge. */
#include "kv/rates.h"

#include <math.h>

static const double KEEP = 0.97;         /* weight of the past, for each observation */
static const double KEEP_LESS = 0.85;    /* where the past stopped telling the present: */
static const double CHANGED = 0.25;      /* a usual deviation of so much */
static const double LEAST = 1e-4;        /* of a cost, in units: none is free */
static const double LOOSE = 1000;        /* covariance at the start: costs known within a factor of some 30 */
static const double MOST_LOOSE = 1e4;    /* what is not observed does not get looser than this */
static const double LEAST_SPREAD = 0.02; /* no clock is better than 2 % */
enum { CERTAIN_AFTER = 8 };              /* observations before any is called unusual */

static void fit_init(struct rates_fit *fit, int terms, const double *unit)
{
    *fit = (struct rates_fit){.terms = terms, .spread = 0.2};
    for (int i = 0; i < terms; i++) {
        fit->unit[i] = unit[i] > 0 && isfinite(unit[i]) ? unit[i] : 1e-12;
        fit->cost[i] = 1;
        fit->covariance[i][i] = LOOSE;
    }
}

/* How far the observation is let off what was predicted, as a relative error. */
static double pulled_in(struct rates_fit *fit, double error)
{
    double size = fabs(error), usual = fit->spread > LEAST_SPREAD ? fit->spread : LEAST_SPREAD;
    bool certain = ++fit->observed > CERTAIN_AFTER;
    double limited = certain && size > 3 * usual ? 3 * usual : size;
    double seen = size < 4 * usual || !certain ? size : 4 * usual;
    fit->spread += 0.1 * ((seen < 1 ? seen : 1) - fit->spread);
    return error < 0 ? -limited : limited;
}

/* All costs times so much. */
static void rescale(struct rates_fit *fit, double factor)
{
    for (int i = 0; i < fit->terms; i++) {
        fit->cost[i] *= factor;
        for (int j = 0; j < fit->terms; j++)
            fit->covariance[i][j] *= factor * factor;
    }
}

/* What was learnt holds no more: each cost may be anything about itself. */
static void loosen(struct rates_fit *fit)
{
    for (int i = 0; i < fit->terms; i++)
        fit->covariance[i][i] += fit->cost[i] * fit->cost[i];
}

static double predict(const struct rates_fit *fit, const double *amount)
{
    double predicted = 0;
    for (int i = 0; i < fit->terms; i++)
        predicted += fit->cost[i] * fit->unit[i] * amount[i];
    return predicted;
}

static void learn(struct rates_fit *fit, const double *row, double error)
{
    double gain[RATES_TERMS], trace = 0, keep = fit->spread > CHANGED ? KEEP_LESS : KEEP, norm = keep;
    int n = fit->terms;
    for (int i = 0; i < n; i++) {
        gain[i] = 0;
        for (int j = 0; j < n; j++)
            gain[i] += fit->covariance[i][j] * row[j];
        norm += gain[i] * row[i];
    }
    for (int i = 0; i < n; i++) {
        double least = fit->cost[i] / 4; /* one observation does not make anything free */
        fit->cost[i] += gain[i] / norm * error;
        fit->cost[i] = fit->cost[i] > least ? fit->cost[i] : least > LEAST ? least : LEAST;
        trace += fit->covariance[i][i] - gain[i] * gain[i] / norm;
    }
    double scale = trace > MOST_LOOSE * keep ? 1 : 1 / keep;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            fit->covariance[i][j] = (fit->covariance[i][j] - gain[i] * gain[j] / norm) * scale;
}

static void fit_observe(struct rates_fit *fit, const double *amount, double seconds)
{
    double row[RATES_TERMS], predicted = predict(fit, amount), larger;
    bool bad = fit->spread > CHANGED;
    larger = seconds > predicted ? seconds : predicted;
    double error = pulled_in(fit, (seconds - predicted) / larger);
    if (bad || fit->observed <= CERTAIN_AFTER) { /* first of all the whole, half the way there */
        double off = seconds / predicted;
        rescale(fit, sqrt(off < 0.01 ? 0.01 : off > 100 ? 100 : off));
        predicted = predict(fit, amount);
        larger = seconds > predicted ? seconds : predicted;
        error = (seconds - predicted) / larger;
    }
    for (int i = 0; i < fit->terms; i++)
        row[i] = fit->unit[i] * amount[i] / larger;
    learn(fit, row, error);
    if (!bad && fit->spread > CHANGED)
        loosen(fit);
}

void rates_init(struct rates *rates, const struct plan_rates *initial)
{
    static const struct plan_rates middling = {1e9, 1e-4, 0.02, 1e-3, 1e-7};
    rates->now = initial ? *initial : middling;
    const struct plan_rates *r = &rates->now;
    fit_init(&rates->read, 2, (double[]){r->io_request_s, 1 / r->io_bytes_per_s});
    fit_init(&rates->compute, 3, (double[]){r->batch_s, r->token_s, r->depth_s});
}

void rates_observe_read(struct rates *rates, uint64_t bytes, uint64_t requests, double seconds)
{
    struct rates_fit *fit = &rates->read;
    if (!(seconds > 0) || !isfinite(seconds) || bytes == 0 || requests == 0)
        return;
    fit_observe(fit, (double[]){(double)requests, (double)bytes}, seconds);
    rates->now.io_request_s = fit->cost[0] * fit->unit[0];
    rates->now.io_bytes_per_s = 1 / (fit->cost[1] * fit->unit[1]);
}

void rates_observe_compute(struct rates *rates, uint64_t tokens, double depth, double seconds)
{
    struct rates_fit *fit = &rates->compute;
    if (!(seconds > 0) || !isfinite(seconds) || tokens == 0 || !(depth >= 0) || !isfinite(depth))
        return;
    fit_observe(fit, (double[]){1, (double)tokens, depth}, seconds);
    rates->now.batch_s = fit->cost[0] * fit->unit[0];
    rates->now.token_s = fit->cost[1] * fit->unit[1];
    rates->now.depth_s = fit->cost[2] * fit->unit[2];
}
