#include <cctype>

#include "engine.h"
struct Lex {
  const string& s;
  size_t p = 0;
  int line = 1;
  int file = 0, sline = 0;
  Lex(const string& t) : s(t) {}
  void adv(size_t n = 1) {
    while (n-- && p < s.size()) {
      if (s[p] == '\n') line++;
      p++;
    }
  }
  void ws() {
    while (p < s.size() && isspace((u8)s[p])) adv();
  }
  bool end() {
    ws();
    return p >= s.size();
  }
  string dir() {
    ws();
    size_t b = p++;
    while (p < s.size() && (isalnum((u8)s[p]) || s[p] == '_')) p++;
    return s.substr(b, p - b);
  }
  string word() {
    ws();
    size_t b = p;
    while (p < s.size() && !isspace((u8)s[p]) && !strchr(";,(){}[]=:", s[p])) p++;
    return s.substr(b, p - b);
  }
  string eol() {
    size_t b = p;
    while (p < s.size() && s[p] != '\n') p++;
    return s.substr(b, p - b);
  }
  string until(char c) {
    size_t b = p;
    bool q = false;
    while (p < s.size() && (q || s[p] != c)) {
      if (s[p] == '"') q = !q;
      if (s[p] == '\n') line++;
      p++;
    }
    string r = s.substr(b, p - b);
    if (p < s.size()) p++;
    return r;
  }
  char peek() {
    ws();
    return p < s.size() ? s[p] : 0;
  }
  void braces() {
    ws();
    int d = 0;
    do {
      if (s[p] == '{')
        d++;
      else if (s[p] == '}')
        d--;
      adv();
    } while (d && p < s.size());
  }
};
static string strip_comments(const string& t) {
  string o;
  o.reserve(t.size());
  size_t i = 0, n = t.size();
  bool q = false;
  while (i < n) {
    if (t[i] == '"') q = !q;
    if (!q && t[i] == '/' && i + 1 < n && t[i + 1] == '/') {
      while (i < n && t[i] != '\n') i++;
    } else if (!q && t[i] == '/' && i + 1 < n && t[i + 1] == '*') {
      i += 2;
      while (i + 1 < n && !(t[i] == '*' && t[i + 1] == '/')) {
        if (t[i] == '\n') o += '\n';
        i++;
      }
      i += 2;
      o += ' ';
    } else
      o += t[i++];
  }
  return o;
}
static string trim(const string& s) {
  size_t a = s.find_first_not_of(" \t\r\n"), b = s.find_last_not_of(" \t\r\n");
  return a == string::npos ? "" : s.substr(a, b - a + 1);
}
static int tysize(const string& t) {
  if (t == "pred") return 0;
  if (t == "b128") return 16;
  size_t i = t.size();
  while (i && isdigit((u8)t[i - 1])) i--;
  if (t.size() > 2 && t.find('x') != string::npos) return 4;
  return i < t.size() ? atoi(t.c_str() + i) / 8 : 4;
}
static vector<string> toks(const string& s) {
  vector<string> r;
  string c;
  for (char ch : s) {
    if (isspace((u8)ch)) {
      if (!c.empty()) r.push_back(c);
      c.clear();
    } else
      c += ch;
  }
  if (!c.empty()) r.push_back(c);
  return r;
}
static u8 ptype(const string& t) {
  if (t == "f32") return 1;
  if (t == "f64") return 2;
  if (t[0] == 's') return 3;
  if (t[0] == 'u') return 4;
  return 0;
}
// parse "[space] .align N .type name[dims] = init"
static Var parse_var(const string& decl0, int space) {
  Var v;
  v.space = space;
  string decl = decl0, init;
  size_t eq = decl.find('=');
  if (eq != string::npos) {
    init = trim(decl.substr(eq + 1));
    decl = decl.substr(0, eq);
  }
  vector<string> tk = toks(decl);
  string ty = "b32";
  u32 al = 0;
  string nm;
  int vecn = 1;
  for (size_t i = 0; i < tk.size(); i++) {
    if (tk[i] == ".align") {
      al = atoi(tk[++i].c_str());
    } else if (tk[i] == ".ptr" || tk[i].rfind(".attribute", 0) == 0)
      continue;
    else if (tk[i] == ".v2")
      vecn = 2;
    else if (tk[i] == ".v4")
      vecn = 4;
    else if (tk[i][0] == '.') {
      if (tk[i] != ".global" && tk[i] != ".shared" && tk[i] != ".const") ty = tk[i].substr(1);
    } else
      nm += tk[i];
  }
  u64 n = 1;
  bool un = false;
  size_t br = nm.find('[');
  string dims;
  if (br != string::npos) {
    dims = nm.substr(br);
    nm = nm.substr(0, br);
    size_t q = 0;
    while ((q = dims.find('[', q)) != string::npos) {
      size_t e = dims.find(']', q);
      string d = dims.substr(q + 1, e - q - 1);
      if (trim(d).empty())
        un = true;
      else
        n *= strtoull(d.c_str(), 0, 0);
      q = e;
    }
  }
  v.name = nm;
  v.esize = std::max(1, tysize(ty));
  v.size = un ? 0 : n * v.esize * vecn;
  v.unsized = un;
  v.align = al ? al : v.esize * vecn;
  if (!init.empty()) {
    string cur;
    int par = 0;
    u64 off = 0;
    auto put = [&](string e) {
      e = trim(e);
      if (e.empty()) return;
      u64 val = 0;
      if (e.rfind("0f", 0) == 0 || e.rfind("0F", 0) == 0 || e.rfind("0d", 0) == 0 || e.rfind("0D", 0) == 0)
        val = strtoull(e.c_str() + 2, 0, 16);
      else if (isdigit((u8)e[0]) || e[0] == '-' || e[0] == '+')
        val = (u64)(e[0] == '-' ? (u64)strtoll(e.c_str(), 0, 0) : strtoull(e.c_str(), 0, 0));
      else {
        string s = e;
        if (s.rfind("generic(", 0) == 0) s = s.substr(8, s.size() - 9);
        v.relocs.push_back({off, trim(s)});
      }
      if (v.init.size() < off + v.esize) v.init.resize(off + v.esize);
      memcpy(v.init.data() + off, &val, std::min(8, v.esize));
      off += v.esize;
    };
    for (char c : init) {
      if (c == '(') par++;
      if (c == ')') par--;
      if (c == '{' || c == '}') {
        put(cur);
        cur.clear();
        continue;
      }
      if (c == ',' && !par) {
        put(cur);
        cur.clear();
        continue;
      }
      cur += c;
    }
    put(cur);
    if (un) {
      v.size = off;
      v.unsized = false;
    }
  }
  return v;
}
static vector<string> split_top(const string& s, char sep) {
  vector<string> r;
  string c;
  int d = 0;
  for (char ch : s) {
    if (strchr("({[", ch)) d++;
    if (strchr(")}]", ch)) d--;
    if (ch == sep && !d) {
      r.push_back(trim(c));
      c.clear();
    } else
      c += ch;
  }
  c = trim(c);
  if (!c.empty() || !r.empty()) r.push_back(c);
  return r;
}
static vector<Param> parse_params(const string& s, u32& total) {
  vector<Param> r;
  u32 off = 0;
  for (auto& p : split_top(s, ',')) {
    if (p.empty()) continue;
    string q = p;
    size_t k = q.find(".ptr");
    u32 al2 = 0;
    if (k != string::npos) {  // .param .u64 .ptr .global .align 8 name
      auto tk = toks(q);
      string nm = tk.back(), ty;
      for (auto& t : tk)
        if (t != ".param" && t[0] == '.' && ty.empty()) ty = t;
      q = ".param " + ty + " " + nm;
      (void)al2;
    }
    size_t pp = q.find(".param");
    if (pp != string::npos) q = q.substr(pp + 6);
    bool isreg = false;
    if (q.rfind(".reg", 0) == 0) {
      isreg = true;
      q = q.substr(4);
    }
    (void)isreg;
    Var v = parse_var(q, SP_PARAM);
    off = (off + v.align - 1) / v.align * v.align;
    auto tk = toks(q);
    string ty;
    for (auto& t : tk)
      if (t[0] == '.' && t != ".align") ty = t.substr(1);
    r.push_back({v.name, off, (u32)v.size, v.align, ty.empty() ? (u8)0 : ptype(ty)});
    off += v.size;
  }
  total = off;
  return r;
}
static void parse_body(Lex& lx, Function& f) {
  lx.adv();  // '{'
  f.scopes.push_back(Scope{-1, {}, {}, {}, {}, {}});
  vector<int> st{0};
  string lastlabel;
  while (true) {
    char c = lx.peek();
    if (!c) throw SimError("PTX parse: unexpected end in " + f.name);
    if (c == '{') {
      lx.adv();
      f.scopes.push_back(Scope{st.back(), {}, {}, {}, {}, {}});
      st.push_back(f.scopes.size() - 1);
      continue;
    }
    if (c == '}') {
      lx.adv();
      st.pop_back();
      if (st.empty()) return;
      continue;
    }
    if (c == ';') {
      lx.adv();
      continue;
    }
    int line = lx.line;
    size_t save = lx.p;
    Scope& sc = f.scopes[st.back()];
    if (c == '.') {
      string w = lx.dir();
      if (w == ".loc") {
        string r = lx.eol();
        size_t ia = r.find("inlined_at");
        auto tk = toks(r);
        if (tk.size() >= 2) {
          lx.file = atoi(tk[0].c_str());
          lx.sline = atoi(tk[1].c_str());
        }
        (void)ia;
        continue;
      }
      if (w == ".file") {
        lx.eol();
        continue;
      }
      string d = trim(lx.until(';'));
      if (w == ".reg") {
        auto tk = toks(d);
        string ty = tk[0].substr(1);
        size_t q = d.find(tk[0]);
        string rest = d.substr(q + tk[0].size());
        if (!tk.empty() && tk.size() > 1 && (tk[1] == ".v2" || tk[1] == ".v4"))
          throw SimError("vector .reg unsupported");
        u8 wd = tysize(ty);
        if (wd == 1) wd = 2;
        for (auto& nm : split_top(rest, ',')) {
          size_t lt = nm.find('<');
          if (lt != string::npos)
            sc.ranged[nm.substr(0, lt)] = RegDecl{wd, atoi(nm.c_str() + lt + 1)};
          else
            sc.regs[nm] = wd;
        }
      } else if (w == ".local" || w == ".shared" || w == ".param" || w == ".global" || w == ".const") {
        int sp = w == ".local"    ? SP_LOCAL
                 : w == ".shared" ? SP_SHARED
                 : w == ".param"  ? SP_PARAM
                 : w == ".const"  ? SP_CONST
                                  : SP_GLOBAL;
        vector<string> parts = split_top(d, ',');
        string head;
        if (d.find('=') != string::npos) parts = {d};
        for (size_t i = 0; i < parts.size(); i++) {
          string q = parts[i];
          if (i)
            q = head + " " + q;
          else {
            auto tk = toks(q);
            for (size_t k = 0; k + 1 < tk.size(); k++) head += tk[k] + " ";
          }
          Var v = parse_var(q, sp);
          sc.vars[v.name] = v;
        }
      } else if (w == ".branchtargets") {
        vector<string> l = split_top(d, ',');
        sc.btargets[lastlabel] = l;
      } else if (w == ".callprototype" || w == ".pragma" || w == ".calltargets" || w == ".noreturn") {
      } else
        throw SimError(fmt("PTX parse: directive %s at line %d not understood", w.c_str(), line));
      continue;
    }
    // label?
    {
      size_t q = lx.p;
      while (q < lx.s.size() && (isalnum((u8)lx.s[q]) || strchr("_$%.", lx.s[q]))) q++;
      size_t e = q;
      while (e < lx.s.size() && (lx.s[e] == ' ' || lx.s[e] == '\t')) e++;
      if (e < lx.s.size() && lx.s[e] == ':' && lx.s[e + 1] != ':') {
        string nm = lx.s.substr(lx.p, q - lx.p);
        sc.labels[nm] = f.code.size();
        lastlabel = nm;
        lx.p = e + 1;
        continue;
      }
    }
    (void)save;
    string t = trim(lx.until(';'));
    string n;
    bool sp = false;
    for (char ch : t) {
      if (isspace((u8)ch)) {
        if (!sp) n += ' ';
        sp = true;
      } else {
        n += ch;
        sp = false;
      }
    }
    f.code.push_back(Stmt{n, line, lx.file, lx.sline, st.back()});
  }
}
void parse_module(Module& M, const string& text) {
  M.text = strip_comments(text);
  Lex lx(M.text);
  bool ext = false;
  while (!lx.end()) {
    if (lx.peek() != '.') {
      if (lx.peek() == ';') {
        lx.adv();
        continue;
      }
      throw SimError(fmt("PTX parse: unexpected text at line %d: %s", lx.line, lx.s.substr(lx.p, 40).c_str()));
    }
    int line = lx.line;
    string w = lx.word();
    if (w == ".version" || w == ".address_size") {
      lx.eol();
    } else if (w == ".target") {
      string r = lx.eol();
      size_t k = r.find("sm_");
      if (k != string::npos) M.target = atoi(r.c_str() + k + 3);
    } else if (w == ".file") {
      string r = trim(lx.eol());
      int id = atoi(r.c_str());
      size_t a = r.find('"'), b = r.rfind('"');
      if (a != string::npos) {
        string p = r.substr(a + 1, b - a - 1);
        size_t k = p.rfind('/');
        M.files[id] = k == string::npos ? p : p.substr(k + 1);
      }
    } else if (w == ".loc")
      lx.eol();
    else if (w == ".section") {
      while (lx.peek() != '{') lx.adv();
      lx.braces();
    } else if (w == ".visible" || w == ".weak" || w == ".common" || w == ".internal") {
    } else if (w == ".extern")
      ext = true;
    else if (w == ".pragma" || w == ".alias")
      lx.until(';');
    else if (w == ".global" || w == ".const" || w == ".shared") {
      string d = lx.until(';');
      Var v = parse_var(d, w == ".global" ? SP_GLOBAL : w == ".const" ? SP_CONST : SP_SHARED);
      v.ext = ext;
      if (v.space == SP_CONST && v.unsized) v.ext = true;
      M.vars[v.name] = v;
      ext = false;
    } else if (w == ".entry" || w == ".func") {
      Function f;
      f.entry = w == ".entry";
      u32 tot = 0;
      while (lx.peek() == '.') {
        string x = lx.word();
        (void)x;
      }
      if (lx.peek() == '(') {
        lx.adv();
        string r = lx.until(')');
        f.rets = parse_params(r, tot);
      }
      f.name = lx.word();
      if (lx.peek() == '(') {
        lx.adv();
        string ps;
        int d = 1;
        while (d && lx.p < lx.s.size()) {
          char c = lx.s[lx.p];
          if (c == '(') d++;
          if (c == ')') d--;
          if (d) ps += c;
          lx.adv();
        }
        f.params = parse_params(ps, f.psize);
      }
      while (lx.peek() && lx.peek() != '{' && lx.peek() != ';') {
        string x = lx.word();
        if (x.empty()) {
          lx.adv();
          continue;
        }
        if (x == ".reqnctapercluster") {
          f.cluster = 1;
          for (int k = 0; k < 3; k++) {
            f.cluster *= std::max(1, atoi(lx.word().c_str()));
            if (lx.peek() == ',')
              lx.adv();
            else
              break;
          }
        }
        if (x == ".maxntid" || x == ".reqntid") {
          int* t = x == ".maxntid" ? f.maxntid : f.reqntid;
          int k = 0;
          t[0] = t[1] = t[2] = 1;
          while (k < 3) {
            string v = lx.word();
            t[k++] = atoi(v.c_str());
            if (lx.peek() == ',')
              lx.adv();
            else
              break;
          }
        }
      }
      if (lx.peek() == '{') {
        lx.file = lx.sline = 0;
        f.hasbody = true;
        parse_body(lx, f);
        if (f.entry) M.entries.push_back(f.name);
        M.funcs[f.name] = std::move(f);
      } else {
        lx.adv();
        if (!M.funcs.count(f.name)) M.funcs[f.name] = std::move(f);
      }
      ext = false;
    } else
      throw SimError(fmt("PTX parse: directive %s at line %d not understood", w.c_str(), line));
  }
}
