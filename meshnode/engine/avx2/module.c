/* The kernels as a Python module. Addresses are those of tensors, which the caller keeps alive, and whose sizes it has checked. */

#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "kernels.h"

#ifdef MESHNODE_AVX2

static int is_supported(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

typedef unsigned long long Address;
#define AT(type, address) ((type *)(uintptr_t)(address))

static PyObject *py_multiply(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Product p = {0};
    Address rows, tiles, out;
    unsigned threads;
    if (!PyArg_ParseTuple(arguments, "KKKlllipI", &rows, &tiles, &out, &p.n, &p.outputs, &p.groups, &p.bits, &p.as_float, &threads)) return NULL;
    p.rows = AT(const uint16_t, rows);
    p.tiles = AT(const uint8_t, tiles);
    p.out = AT(void, out);
    int is_done;
    Py_BEGIN_ALLOW_THREADS
    is_done = multiply(&p, threads);
    Py_END_ALLOW_THREADS
    return is_done ? Py_NewRef(Py_None) : PyErr_NoMemory();
}

static PyObject *py_attend(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Attention a = {0};
    Address fused, rotations, memory, spans, tables, queries, out;
    unsigned threads;
    if (!PyArg_ParseTuple(arguments, "KKKKKKKlllllllI", &fused, &rotations, &memory, &spans, &tables, &queries, &out, &a.n, &a.count,
                          &a.query_heads, &a.kv_heads, &a.size, &a.pages, &a.page, &threads))
        return NULL;
    a.fused = AT(const uint16_t, fused);
    a.rotations = AT(const float, rotations);
    a.memory = AT(uint16_t, memory);
    a.spans = AT(const Span, spans);
    a.tables = AT(const int64_t, tables);
    a.queries = AT(float, queries);
    a.out = AT(uint16_t, out);
    int is_done;
    Py_BEGIN_ALLOW_THREADS
    is_done = attend(&a, threads);
    Py_END_ALLOW_THREADS
    return is_done ? Py_NewRef(Py_None) : PyErr_NoMemory();
}

static PyObject *py_normalise(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Rows r = {0};
    Address rows, weight, out;
    unsigned threads;
    if (!PyArg_ParseTuple(arguments, "KKfKllI", &rows, &weight, &r.epsilon, &out, &r.n, &r.columns, &threads)) return NULL;
    r.rows = AT(const uint16_t, rows);
    r.weight = AT(const float, weight);
    r.out = AT(uint16_t, out);
    Py_BEGIN_ALLOW_THREADS
    normalise(&r, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_gate(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Rows r = {0};
    Address rows, out;
    unsigned threads;
    if (!PyArg_ParseTuple(arguments, "KKllI", &rows, &out, &r.n, &r.columns, &threads)) return NULL;
    r.rows = AT(const uint16_t, rows);
    r.out = AT(uint16_t, out);
    Py_BEGIN_ALLOW_THREADS
    gate(&r, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"multiply", py_multiply, METH_VARARGS, "multiply(rows, tiles, out, n, outputs, groups, bits, as_float, threads)"},
    {"attend", py_attend, METH_VARARGS,
     "attend(fused, rotations, memory, spans, tables, queries, out, n, count, query_heads, kv_heads, size, pages, page, threads)"},
    {"normalise", py_normalise, METH_VARARGS, "normalise(rows, weight, epsilon, out, n, columns, threads)"},
    {"gate", py_gate, METH_VARARGS, "gate(rows, out, n, columns, threads)"},
    {NULL, NULL, 0, NULL},
};

#else

static int is_supported(void) { return 0; }
static PyMethodDef methods[] = {{NULL, NULL, 0, NULL}};

#endif

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", "Kernels for AVX2.", 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "SUPPORTED", is_supported()) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
