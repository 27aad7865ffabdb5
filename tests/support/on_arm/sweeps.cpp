// A program without Python: products, and every compiled term forward and backward, of the kernels
// for every processor of a family beside loops in double. It prints what it compared.
#include <cstring>

#include "oracle.h"

namespace pairops::cpu {

namespace {

// One term, one problem: forward and backward, each with one thread and with three.
template <class Term, class T>
void compare_term(int kernel, const Problem<T>& problem, bool by_column, Comparison& comparison) {
    if (problem.same && Term::has_product) return;  // engines pass one set as two there
    using F = typename Term::Function;
    using Acc = typename Term::template Accumulator<double>;
    const Index owners = (by_column ? problem.y() : problem.x).n;
    const Index partners = (by_column ? problem.x : problem.y()).n;
    TermCall<T> term;
    term.kernel = kernel;
    term.positives = Term::side == Side::pos;
    term.by_column = term.of_columns = by_column;
    term.arity = F::arity;
    term.has_product = Term::has_product;
    std::vector<T> args[MOST_ARGUMENTS], windows[2], further[2];
    for (int k = Term::has_product; k < F::arity; ++k) {
        term.by_partner[k] = Term::by_partner(k);
        const double low = k == 0 ? 2 : 0;
        args[k] = random_vector<T>(Term::by_partner(k) ? partners : owners, low, low + 0.5);
        term.args[k].values = args[k].data();
    }
    if (Term::has_product) {
        further[0] = random_vector<T>(owners * 5, -0.5, 1);
        further[1] = random_vector<T>(partners * 5, -0.5, 1);
        term.further = {further[0].data(), further[1].data(), 5};
    }
    term.has_above = Term::has_above;
    term.has_below = Term::has_below;
    windows[0] = random_vector<T>(owners, -0.2, 0);
    windows[1] = random_vector<T>(owners, 0, 0.2);
    term.above.values = windows[0].data();
    term.below.values = windows[1].data();

    Truth<Term, T> truth(problem, term);
    const std::string name = std::string(Acc::name) + " of " + F::name;
    std::vector<T> value;
    std::vector<Index> arguments;
    for (const int threads : {1, 3}) {
        std::vector<T> found(owners, T(Acc::neutral()));
        arguments.assign(owners, -1);
        term.value = found.data();
        term.argument = Acc::has_argument ? arguments.data() : nullptr;
        forward(problem.call(term, threads));
        if (threads > 1 && std::memcmp(found.data(), value.data(), owners * sizeof(T)) != 0)
            comparison.add(found, Exact(owners, NAN), (name + ", by three threads").c_str());
        value = found;
    }
    comparison.add(value, truth.value, name.c_str());
    if (Acc::extreme && !Acc::has_argument) return;  // a threshold, which has no gradient

    const std::vector<T> cotangent = random_vector<T>(owners, -1, 1);
    std::vector<T> slopes[MOST_ARGUMENTS];
    for (int k = Term::has_product; k < F::arity; ++k) {
        slopes[k].assign(args[k].size(), T(0));
        term.slope[k] = slopes[k].data();
    }
    term.statistic.values = value.data();
    term.cotangent.values = cotangent.data();
    const Index d = problem.x.d;
    std::vector<T> dx(problem.x.n * d), dy(problem.same ? 0 : problem.y().n * d);
    T* const by_y = problem.same ? nullptr : dy.data();
    if (Acc::extreme)
        backward_extremes(problem.call(term, 3), dx.data(), by_y);
    else
        backward(problem.call(term, 3), dx.data(), by_y);
    truth.differentiate(cotangent);
    comparison.add(dx, truth.dx, (name + ", gradient by x").c_str());
    if (by_y) comparison.add(dy, truth.dy, (name + ", gradient by y").c_str());
    for (int k = Term::has_product; k < F::arity; ++k)
        comparison.add(slopes[k], truth.slope[k], (name + ", gradient by arguments").c_str());
}

template <class T, class... Terms>
void compare_recipe(int& next, const Recipe<Terms...>*, const Problem<T>& problem, bool by_column,
                    Comparison& comparison) {
    (compare_term<Terms>(next++, problem, by_column, comparison), ...);
}
template <class T, class... Recipes>
void compare_all(const std::tuple<Recipes...>*, const Problem<T>& problem, bool by_column,
                 Comparison& comparison) {
    int next = 0;
    (compare_recipe(next, static_cast<const Recipes*>(nullptr), problem, by_column, comparison),
     ...);
}

// s of one tile of packed rows and columns.
template <class T>
void compare_products(const Kernels<T>& kernels, Index d, Comparison& comparison) {
    Problem<T> problem(false, 200, 200, d);
    const Embeddings x = problem.x.embeddings(), y = problem.y().embeddings();
    std::vector<T> rows(TILE * d), columns(TILE * d), s(TILE * TILE);
    kernels.pack_rows(x, 0, TILE, rows.data());
    for (int c = 0; c < TILE; c += kernels.panel_cols)
        kernels.pack_cols(y, c, columns.data() + c * d);
    kernels.multiply(rows.data(), columns.data(), TILE, TILE, d, nullptr, s.data());
    Exact truth(TILE * TILE);
    for (int i = 0; i < TILE; ++i)
        for (int j = 0; j < TILE; ++j)
            for (Index k = 0; k < d; ++k)
                truth[i * TILE + j] +=
                    problem.x.unit(x.permutation[i], k) * problem.y().unit(y.permutation[j], k);
    comparison.add(s, truth, "products");
}

template <class T>
bool compare(const char* name, const Kernels<T>& kernels) {
    Comparison comparison;
    for (const Index d : {1, 37, 300}) compare_products(kernels, d, comparison);
    const auto* recipes = static_cast<const CpuRecipes*>(nullptr);
    compare_all(recipes, Problem<T>(true, 150, 0, 19), false, comparison);
    const Problem<T> two(false, 130, 101, 19);
    for (const bool by_column : {false, true}) compare_all(recipes, two, by_column, comparison);
    std::printf("%s, %s: %d results, at most %.2g of the tolerance %.0e off\n", isa_baseline.name,
                name, comparison.compared, comparison.worst, TOLERANCE<T>);
    return comparison.worst <= 1;
}

}  // namespace
}  // namespace pairops::cpu

int main() {
    using namespace pairops::cpu;
    const bool right =
        compare("float32", *isa_baseline.f32) & compare("float64", *isa_baseline.f64);
    return right ? 0 : 1;
}
