// Runs the sweeps on the machine, over every kind of term and shape of tile, against plain loops.
//
//     sweeps_test few|small|whole [how a case's name begins] [schedule ...]
//
// few and small are for sanitizers, which `fine` is not compiled for, as split does what it does;
// ThreadSanitizer takes a tenth of a second for every block.
#include <chrono>
#include <cstdio>

#include "host.h"
#include "sweeps_run.h"

using namespace pairops::cuda;
using pairops::Side;

// What a term is to be, before there are numbers for it.
struct Wanted {
    int kind;
    Side side;
    bool above, below;
};

// Every kind on every side, without windows, with one, with two.
std::vector<Wanted> every_wanted() {
    std::vector<Wanted> all;
    for (int windows = 0; windows < 4; windows++) {
        for (const Side side : {Side::pos, Side::neg, Side::all})
            for (int kind = 0; kind < int(kinds().size()); kind++)
                all.push_back({kind, side, windows % 2 == 1, windows / 2 == 1});
    }
    return all;
}

// Terms that go shorter ways (kernels/short_ways.h), two calls of four: without windows, so that
// r_i joins the scales, and with some. The form of each says which plain scale it has, and which
// base.
struct Short {
    Wanted wanted;
    int form;
};
std::vector<std::vector<Short>> short_ways() {
    int kind = 0;
    while (kinds()[std::size_t(kind)].rfind("lse:affine", 0) != 0 ||
           kinds()[std::size_t(kind)].find('p') != std::string::npos)
        kind++;
    return {{{{kind, Side::neg, false, false}, 4},
             {{kind, Side::all, false, false}, 0},
             {{kind, Side::pos, false, false}, 6},
             {{kind, Side::neg, false, false}, 10}},
            {{{kind, Side::neg, true, false}, 4},
             {{kind, Side::all, true, true}, 0},
             {{kind, Side::pos, false, true}, 2},
             {{kind, Side::neg, false, false}, 6}}};
}

// A number, a value that all share, or one for each.
Given given(Problem& problem, const OneSet& set, int form, double (*value)(Random&)) {
    Given made;
    made.present = true;
    if (form == 0) {
        made.number = float(value(problem.random));
    } else if (form == 1) {
        made.values = Exact<float>(1, float(value(problem.random)));
    } else {
        made.stride = 1;
        made.values = Exact<float>(std::size_t(set.n));
        for (int i = 0; i < set.n; i++)  // NaN for an ignored row
            if (set.valid[i]) made.values[i] = float(value(problem.random));
    }
    return made;
}

// Similarities of the pairs that this row of a set is in.
std::vector<double> similarities_of(const Problem& problem, int axis, int row, Side side) {
    std::vector<double> found;
    for (int other = 0; other < problem.set(1 - axis).n; other++) {
        const int i = axis == 0 ? row : other, j = axis == 0 ? other : row;
        if (problem.on_side(i, j, side)) found.push_back(problem.similarity(i, j));
    }
    return found;
}

// label: of the only owners for which windows keep a pair, so that there are tiles without one; -1:
// they do for all.  shorter: a softmax that goes a short way.
Term make_term(Problem& problem, const Wanted& wanted, int form, int label, bool shorter = false) {
    Term term{};
    const std::string kind = kinds()[std::size_t(wanted.kind)];
    const std::size_t colon = kind.find(':'), open = std::min(kind.find('('), kind.size());
    term.accumulator = kind.substr(0, colon);
    term.function = kind.substr(colon + 1, open - colon - 1);
    for (std::size_t k = 0; k < 2; k++)
        term.by_partner[k] = open < kind.size() && kind.at(open + 1 + k) == 'p';
    term.kind = wanted.kind;
    term.side = wanted.side;
    term.owners = problem.same ? 0 : form % 2;
    term.name = kind + (wanted.side == Side::pos ? " pos" : wanted.side == Side::neg ? " neg" : "");
    term.name += wanted.above ? " above" : "";
    term.name += wanted.below ? " below" : "";
    term.name += term.owners ? " of y" : " of x";
    const OneSet& owners = problem.set(term.owners);
    const auto set_of = [&](int k) -> const OneSet& {
        return problem.set(term.by_partner[k] ? 1 - term.owners : term.owners);
    };
    if (term.arity() > 0) {
        term.args[0] = given(problem, set_of(0), form % 3, [](Random& random) {
            return (random.below(4) ? 1 : -1) * (2 + 6 * random.uniform());
        });
        term.args[1] = given(problem, set_of(1), form / 2 % 3,
                             [](Random& random) { return 0.4 * random.uniform() - 0.1; });
    }
    if (shorter) {
        // A plain scale: an exponential needs no maximum and serves both views, nearly does not,
        // does not. Here and there a base is out of reach.
        const double scales[] = {5, -7, 40, 400};
        const bool steep = problem.shaped.precision == Precision::plain &&
                           !problem.shaped.long_rows && problem.shaped.d <= 128;
        term.args[0] = Given{};
        term.args[0].present = true;
        term.args[0].number = float(scales[form / 2 % (steep ? 4 : 2)]);
        term.args[1].learned = false;  // else each view has an exponential of its own
        if (term.args[1].stride == 1 && steep)
            for (int i = 5; i < owners.n; i += 97)
                if (owners.valid[i]) term.args[1].values[i] = -3;
    }
    if (term.function == "hinge") {  // no pair where rounding decides about its slope
        Given& base = term.args[1];
        const int axis = term.by_partner[1] ? 1 - term.owners : term.owners;
        if (base.stride == 0) {
            const double middle = gap(problem.s, 0.6);
            base.number = float(middle);
            if (base.values.size()) base.values[0] = float(middle);
        } else {
            for (int i = 0; i < problem.set(axis).n; i++)
                if (problem.set(axis).valid[i])
                    base.values[i] =
                        float(gap(similarities_of(problem, axis, i, wanted.side), 0.6));
        }
    }
    for (int window = 0; window < 2; window++) {
        if (!(window == 0 ? wanted.above : wanted.below)) continue;
        Given& bound = window == 0 ? term.above : term.below;
        bound = given(problem, owners, 2, [](Random&) { return 0.0; });
        for (int i = 0; i < owners.n; i++) {
            if (!owners.valid[i]) continue;
            const bool none = label >= 0 && owners.label[i] != label;
            const double quantile = window == 0 ? (wanted.below ? 0.4 : 0.97) : 0.6;
            const double at = gap(similarities_of(problem, term.owners, i, wanted.side), quantile);
            bound.values[i] = none ? (window == 0 ? INFINITY : -INFINITY) : float(at);
        }
    }
    const int cotangent = form % 5 == 1 ? 1 : 2;
    term.cotangent =
        given(problem, owners, cotangent, [](Random& random) { return random.normal(); });
    return term;
}

struct Case {
    Shaped shaped;
    int first, step;  // of all groups of terms those that are tested
    bool small;
    int few;  // the one group that is tested of few; -1: none
};
constexpr Precision plain = Precision::plain, fine = Precision::fine, split = Precision::split;

// Rows that are no multiple of 8, more than two tiles, the last ragged; blocks with ignored rows.
const Case cases[] = {
    // precision, dtype, D, N, M, ignored, classes, splits, normalized, Hopper, of one sign, long
    // rows
    {{plain, "bfloat16", 40, 205, 0, 12, 23, 1, true, false}, 0, 1, true, 14},
    {{plain, "float16", 40, 269, 149, 9, 31, 3, true, false}, 0, 2, true, 21},
    {{plain, "bfloat16", 40, 77, 0, 5, 9, 1, false, false, false, true}, 1000, 8, true, -1},
    {{plain, "bfloat16", 64, 149, 301, 0, 7, 2, false, false}, 1, 4, false, -1},
    {{plain, "bfloat16", 100, 203, 0, 12, 23, 2, true, false}, 0, 4, false, -1},
    {{plain, "bfloat16", 1, 5, 0, 1, 2, 1, false, false}, 0, 8, false, -1},
    {{plain, "bfloat16", 33, 9, 3, 20, 2, 2, true, false}, 0, 8, false, -1},  // no row is kept
    {{plain, "bfloat16", 128, 70, 203, 7, 11, 1, false, false}, 1, 4, false, -1},
    {{plain, "bfloat16", 200, 107, 0, 9, 11, 1, true, false}, 2, 4, true, -1},
    {{plain, "float16", 200, 93, 107, 9, 17, 2, true, false}, 3, 4, false, -1},
    {{plain, "bfloat16", 300, 107, 0, 9, 11, 1, true, false}, 1, 8, true, 28},
    {{plain, "bfloat16", 700, 67, 77, 0, 5, 2, true, false}, 5, 11, false, -1},
    {{fine, "float16", 40, 205, 0, 12, 23, 2, true, false}, 1, 6, false, -1},
    {{fine, "bfloat16", 100, 149, 203, 5, 13, 1, false, false}, 2, 6, false, -1},
    {{fine, "bfloat16", 200, 107, 0, 9, 11, 3, true, false}, 3, 6, false, -1},
    {{fine, "bfloat16", 300, 93, 107, 9, 17, 1, true, false}, 4, 11, false, -1},
    {{split, "float32", 40, 107, 0, 9, 11, 1, true, false}, 2, 6, true, 14},
    {{split, "float32", 40, 19, 2100, 0, 3, 1, true, false, true}, 8, 60, true, -1},
    {{split, "float32", 100, 93, 107, 9, 17, 2, true, false}, 3, 6, false, -1},
    {{split, "float32", 200, 107, 0, 9, 11, 1, true, false}, 4, 8, true, -1},
    {{split, "float32", 300, 93, 107, 0, 17, 2, false, false}, 5, 11, false, -1},
    {{plain, "bfloat16", 40, 205, 0, 12, 23, 1, true, true}, 0, 6, true, 14},
    {{plain, "float16", 40, 269, 149, 9, 31, 3, true, true}, 2, 6, false, -1},
    {{plain, "bfloat16", 100, 149, 301, 0, 7, 2, false, true}, 3, 8, false, -1},
    {{plain, "float16", 200, 203, 0, 12, 23, 1, true, true}, 3, 8, true, -1},
    {{fine, "float16", 200, 149, 101, 12, 23, 1, true, true}, 4, 8, false, -1},
    {{plain, "bfloat16", 300, 77, 333, 5, 9, 2, true, true}, 1, 8, true, 7},
    {{fine, "bfloat16", 300, 93, 107, 9, 17, 1, true, true}, 4, 16, false, -1},
};

std::string name_of(const Shaped& of) {
    const char* names[] = {"plain", "fine", "split"};
    std::string name = names[int(of.precision)];
    name += ", D = " + std::to_string(of.d) + ", N = " + std::to_string(of.n);
    if (of.m) name += ", M = " + std::to_string(of.m);
    name += ", " + std::to_string(of.splits) + " splits, " + of.dtype;
    return of.hopper ? "Hopper " + name : name;
}

// How many calls were compared.
int run(const Case& one, const std::string& choice) {
    const std::vector<Wanted> all = every_wanted();
    constexpr int together = 4;  // in both roles 8: as many as a call holds
    const int groups = (int(all.size()) + together - 1) / together;
    Problem problem(one.shaped, one.shaped.d + one.shaped.n);
    int count = 0;
    const bool few = choice == "few";
    // float32 has no short ways. Of one shape one case is enough, and of few shapes but for the
    // whole.
    const Shaped& of = one.shaped;
    const bool shorter =
        of.precision != split && of.splits == 1 && (choice == "whole" || of.d == 40);
    for (const std::vector<Short>& given :
         shorter ? short_ways() : std::vector<std::vector<Short>>()) {
        std::vector<Term> terms;
        for (const auto& [wanted, form] : given)
            terms.push_back(make_term(problem, wanted, form, -1, true));
        Run(problem, terms).all(true, true);
        count++;
    }
    const int step = few ? groups : choice == "small" ? std::max(6, one.step) : one.step;
    for (int group = few ? one.few : one.first; group < groups; group += step) {
        std::vector<Term> terms;
        const int label = group % 2 == 0 ? group % one.shaped.classes : -1;
        for (int k = 0; k < together && group * together + k < int(all.size()); k++) {
            const int at = group * together + k;
            terms.push_back(make_term(problem, all[std::size_t(at)], at + group, label));
        }
        // Now and then arguments alone get a gradient, or one set of two.
        Run(problem, terms).all(group % 7 != 3, group % 5 != 4);
        count++;
    }
    return count;
}

int main(int argc, char** argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    const std::string choice = arguments.empty() ? "" : arguments[0];
    if (choice != "few" && choice != "small" && choice != "whole") {
        std::fprintf(stderr,
                     "sweeps_test few|small|whole [how a case's name begins] [schedule ...]\n");
        return 3;
    }
    const std::string part = arguments.size() > 1 ? arguments[1] : "";
    std::vector<std::string> schedules(arguments.begin() + std::min<long>(2, long(argc - 1)),
                                       arguments.end());
    if (schedules.empty()) schedules = {"lockstep"};
    const char* now = "";
    std::string name;
    try {
        for (const std::string& schedule : schedules) {
            const auto begin = std::chrono::steady_clock::now();
            now = schedule.c_str();
            host::set_schedule(schedule, 7);
            int count = 0;
            for (const Case& one : cases) {
                name = name_of(one.shaped);
                const bool chosen = choice == "few"     ? one.few >= 0
                                    : choice == "small" ? one.small
                                                        : true;
                if (chosen && name.find(part) == 0) count += run(one, choice);
            }
            const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
            std::printf("%s: %d calls are right (%.1f s)\n", now, count, took.count());
            std::fflush(stdout);
            if (count == 0) throw std::invalid_argument("no case is called so");
        }
    } catch (const Wrong& wrong) {
        std::fprintf(stderr, "%s, %s: %s\n", now, name.c_str(), wrong.what());
        return 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s, %s: %s\n", now, name.c_str(), error.what());
        return 2;
    }
    if (host::bank_conflicts() == 0) return 0;
    std::fprintf(stderr, "%ld bank conflicts\n", long(host::bank_conflicts()));
    return 1;
}
