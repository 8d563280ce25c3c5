/* Direct feedback alignment in C, held to the golden vectors of the reference.

       python -m prograde.equivalence_tests.vectors write vectors
       cc -std=c99 -o golden_vectors examples/golden_vectors.c -lm
       ./golden_vectors vectors/direct_feedback_alignment.safetensors

   It prints the error of each update beside its bound, and ends with 1 where one is larger. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 3 };
static char *header, *numbers;

typedef struct { size_t rows, columns; void *data; } Tensor;

/* A tensor by its name, in the file's JSON header: {"dtype": "F64", "shape": [5, 7], "data_offsets": [0, 280]}. */
static Tensor tensor(const char *path) {
    char name[128];
    snprintf(name, sizeof name, "\"updates-0-typical/%s\": ", path);
    char *found = strstr(header, name);
    if (!found) { fprintf(stderr, "no tensor %s\n", path); exit(2); }
    Tensor t = {1, 1, NULL};
    sscanf(strstr(found, "\"shape\": ["), "\"shape\": [%zu, %zu", &t.rows, &t.columns);
    t.data = numbers + strtoull(strstr(found, "\"data_offsets\": [") + 17, NULL, 10);
    return t;
}

static Tensor indexed(const char *format, int layer) {
    char path[64];
    snprintf(path, sizeof path, format, layer);
    return tensor(path);
}

/* The root mean square error of an update against its bound; returns whether it is within. */
static int agrees(const char *format, int layer, const double *update) {
    char path[96] = "bound[float64]/";
    Tensor expected = indexed(format, layer);
    size_t count = expected.rows * expected.columns;
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += pow(update[i] - ((double *)expected.data)[i], 2);
    strcat(path, format);
    double error = sqrt(sum / count), bound = *(double *)indexed(path, layer).data;
    printf("layer %d: error %.1e, bound %.1e\n", layer + 1, error, bound);
    return error <= bound;
}

int main(int argc, char **argv) {
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    uint64_t length = 0;
    if (!file || fread(&length, 8, 1, file) != 1) { fprintf(stderr, "usage: %s FILE.safetensors\n", argv[0]); return 2; }
    fseek(file, 0, SEEK_END);
    long size = ftell(file) - 8;
    header = calloc(size + 1, 1);
    fseek(file, 8, SEEK_SET);
    if (fread(header, 1, size, file) != (size_t)size) return 2;
    numbers = memcpy(malloc(size - length), header + length, size - length);
    header[length] = 0;

    Tensor x = tensor("x");
    int64_t *labels = tensor("labels").data;
    size_t batch = x.rows, width[LAYERS + 1] = {x.columns};
    double *h[LAYERS + 1] = {x.data};
    for (int l = 0; l < LAYERS; l++) { /* h_l = tanh(W_l h_(l-1) + b_l), the scores without tanh */
        Tensor weight = indexed("weights[%d]", l);
        double *w = weight.data, *b = indexed("biases[%d]", l).data;
        size_t n = width[l + 1] = weight.rows;
        h[l + 1] = malloc(batch * n * sizeof(double));
        for (size_t s = 0; s < batch; s++)
            for (size_t i = 0; i < n; i++) {
                double a = b[i];
                for (size_t j = 0; j < width[l]; j++) a += w[i * width[l] + j] * h[l][s * width[l] + j];
                h[l + 1][s * n + i] = l < LAYERS - 1 ? tanh(a) : a;
            }
    }
    size_t classes = width[LAYERS];
    double *error = malloc(batch * classes * sizeof(double)); /* e = softmax(scores) - onehot(labels) */
    for (size_t s = 0; s < batch; s++) {
        double *scores = h[LAYERS] + s * classes, sum = 0;
        for (size_t k = 0; k < classes; k++) sum += exp(scores[k]);
        for (size_t k = 0; k < classes; k++) error[s * classes + k] = exp(scores[k]) / sum - ((int64_t)k == labels[s]);
    }
    int good = 1;
    for (int l = 0; l < LAYERS; l++) { /* delta_l = (1 - h_l^2) B_l e, G_l = 1/B sum delta_l h_(l-1)^T */
        size_t n = width[l + 1], m = width[l];
        double *feedback = l < LAYERS - 1 ? indexed("direct[%d]", l).data : NULL;
        double *by_weight = calloc(n * m, sizeof(double)), *by_bias = calloc(n, sizeof(double));
        for (size_t s = 0; s < batch; s++)
            for (size_t i = 0; i < n; i++) {
                double delta = feedback ? 0 : error[s * classes + i], value = h[l + 1][s * n + i];
                for (size_t k = 0; feedback && k < classes; k++)
                    delta += (1 - value * value) * feedback[i * classes + k] * error[s * classes + k];
                by_bias[i] += delta / batch;
                for (size_t j = 0; j < m; j++) by_weight[i * m + j] += delta * h[l][s * m + j] / batch;
            }
        good &= agrees("result[%d][0]", l, by_weight) & agrees("result[%d][1]", l, by_bias);
    }
    puts(good ? "direct feedback alignment agrees" : "direct feedback alignment DISAGREES");
    return !good;
}
