//! Edits are values; [`Graph::apply`] is the only writer.

use super::{Attr, Def, Error, Graph, NodeId, Tensor, Type, ValueId};

/// A node to be, in terms of names. An empty name stands for an absent optional input or output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewNode {
    /// Node name.
    pub name: String,
    /// Operator domain; empty for the standard one.
    pub domain: String,
    /// Operator name.
    pub op: String,
    /// Overload of the local function that is meant; usually empty.
    pub overload: String,
    /// Names of the values read.
    pub inputs: Vec<String>,
    /// Names of the values produced.
    pub outputs: Vec<String>,
    /// Attributes.
    pub attrs: Vec<(String, Attr)>,
    /// Key-value notes.
    pub metadata: Vec<(String, String)>,
}

impl NewNode {
    /// A node of the standard domain.
    pub fn new(op: &str, inputs: &[&str], outputs: &[&str]) -> NewNode {
        let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        NewNode { op: op.to_owned(), inputs: own(inputs), outputs: own(outputs), ..NewNode::default() }
    }

    /// The same node in another domain.
    pub fn domain(mut self, domain: &str) -> NewNode {
        domain.clone_into(&mut self.domain);
        self
    }

    /// The same node with this name.
    pub fn named(mut self, name: impl Into<String>) -> NewNode {
        self.name = name.into();
        self
    }

    /// The same node with one more attribute.
    pub fn attr(mut self, name: &str, value: Attr) -> NewNode {
        self.attrs.push((name.to_owned(), value));
        self
    }
}

/// Where a node is put in the file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Just before this node.
    Before(NodeId),
    /// Just after this node.
    After(NodeId),
    /// Last.
    End,
}

/// A change to a graph.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// A new constant; the name must be free.
    AddConst(String, Tensor),
    /// Another tensor for an existing constant.
    SetConst(ValueId, Tensor),
    /// A new node; its outputs must be free names.
    AddNode(NewNode, Place),
    /// Another node in the place of this one. Outputs with the names of the old ones keep their readers.
    ReplaceNode(NodeId, NewNode),
    /// Another value for one input of a node.
    SetInput(NodeId, usize, String),
    /// Declares the type of a value that has none declared.
    Declare(String, Type),
    /// Removes a node whose outputs nobody reads.
    RemoveNode(NodeId),
    /// A new graph input; the name must be free.
    AddInput(String, Option<Type>),
    /// Makes a value a graph output (a tap), unless it is one.
    AddOutput(String),
    /// Keeps only these graph outputs, in this order.
    KeepOutputs(Vec<String>),
    /// Removes a value, if nobody reads it, and with it whatever only it needed. A name that is not there is no error.
    DropUnread(String),
    /// Removes every node without effect on the outputs, then every constant nobody reads.
    Prune,
}

impl Graph {
    /// Applies edits in order. On an error the graph is left as it was.
    pub fn apply(&mut self, edits: impl IntoIterator<Item = Edit>) -> Result<(), Error> {
        let mut next = self.clone();
        let mut replaced = false;
        // How often values are used, for as long as nothing but removals follow one another.
        let mut counts: Option<Vec<usize>> = None;
        for edit in edits {
            if let Edit::DropUnread(name) = &edit {
                next.drop_unread(name, counts.get_or_insert_with(|| next.use_counts()));
                continue;
            }
            counts = None;
            replaced |= matches!(edit, Edit::ReplaceNode(..));
            next.apply_one(edit)?;
        }
        if replaced {
            next.sweep_undefined();
        }
        *self = next;
        Ok(())
    }

    fn apply_one(&mut self, edit: Edit) -> Result<(), Error> {
        match edit {
            Edit::AddConst(name, tensor) => {
                let id = self.intern(&name);
                let value = self.value_mut(id);
                if value.def != Def::Outer || value.ty.is_some() {
                    return Err(Error::Duplicate(name));
                }
                value.def = Def::Const(tensor);
            }
            Edit::SetConst(id, tensor) => {
                let value = self.value_mut(id);
                if !matches!(value.def, Def::Const(_)) {
                    return Err(Error::NotConstant(value.name.clone()));
                }
                value.def = Def::Const(tensor);
                value.origin = None;
            }
            Edit::AddNode(spec, place) => {
                let id = self.push_node(spec)?;
                self.order.pop();
                let at = match place {
                    Place::End => self.order.len(),
                    Place::Before(node) => self.position(node)?,
                    Place::After(node) => self.position(node)? + 1,
                };
                self.order.insert(at, id);
            }
            Edit::ReplaceNode(id, spec) => {
                self.position(id)?;
                for value in self.node(id).outputs.clone().into_iter().flatten() {
                    self.value_mut(value).def = Def::Outer;
                }
                let node = self.make_node(id, spec)?;
                self.nodes[id.0 as usize] = Some(node);
            }
            Edit::SetInput(id, slot, name) => {
                self.position(id)?;
                let value = if name.is_empty() { None } else { Some(self.intern(&name)) };
                let node = self.nodes[id.0 as usize].as_mut().expect("position() checked");
                match node.inputs.get_mut(slot) {
                    Some(input) => *input = value,
                    None => return Err(Error::NoSlot(node.name.clone(), slot)),
                }
                node.origin = None;
            }
            Edit::Declare(name, ty) => {
                let id = self.find(&name).ok_or(Error::Undefined(name))?;
                self.value_mut(id).ty.get_or_insert(ty);
            }
            Edit::RemoveNode(id) => self.remove_node(id)?,
            Edit::AddInput(name, ty) => {
                let id = self.intern(&name);
                let value = self.value_mut(id);
                if value.def != Def::Outer || value.ty.is_some() {
                    return Err(Error::Duplicate(name));
                }
                value.def = Def::Input;
                value.ty = ty;
                self.inputs.push(id);
            }
            Edit::AddOutput(name) => {
                let id = self.find(&name).ok_or(Error::Undefined(name))?;
                if !self.outputs.contains(&id) {
                    self.outputs.push(id);
                }
            }
            Edit::KeepOutputs(names) => {
                self.outputs = names
                    .into_iter()
                    .map(|name| self.find(&name).ok_or(Error::Undefined(name)))
                    .collect::<Result<_, _>>()?;
            }
            Edit::DropUnread(name) => self.drop_unread(&name, &mut self.use_counts()),
            Edit::Prune => self.prune(),
        }
        Ok(())
    }

    fn position(&self, id: NodeId) -> Result<usize, Error> {
        self.order.iter().position(|&other| other == id).ok_or(Error::NoNode(id.0))
    }

    fn remove_node(&mut self, id: NodeId) -> Result<(), Error> {
        self.position(id)?;
        let uses = self.uses();
        for output in self.node(id).outputs.iter().flatten() {
            if uses.count(*output) > 0 {
                return Err(Error::StillRead(self.name(*output).to_owned()));
            }
        }
        self.take_node(id);
        Ok(())
    }

    fn drop_value(&mut self, id: ValueId) {
        if let Some(value) = self.values[id.0 as usize].take() {
            self.names.remove(&value.name);
        }
    }

    /// By value: readers, and one more for a graph output.
    fn use_counts(&self) -> Vec<usize> {
        let uses = self.uses();
        (0..self.values.len() as u32).map(|id| uses.count(ValueId(id))).collect()
    }

    /// `counts` are those of this graph, and are kept so.
    fn drop_unread(&mut self, name: &str, counts: &mut [usize]) {
        let mut stack: Vec<ValueId> = self.find(name).into_iter().collect();
        while let Some(id) = stack.pop() {
            if counts[id.0 as usize] > 0 || self.values[id.0 as usize].is_none() {
                continue;
            }
            match self.value(id).def {
                Def::Const(_) | Def::Outer => {
                    self.inputs.retain(|&input| input != id);
                    self.drop_value(id);
                }
                Def::Input => {}
                Def::Node(node, _) => {
                    if self.node(node).outputs.iter().flatten().any(|v| counts[v.0 as usize] > 0) {
                        continue;
                    }
                    let reads: Vec<ValueId> = self.reads(node).collect();
                    self.take_node(node);
                    for value in reads {
                        counts[value.0 as usize] -= 1;
                        stack.push(value);
                    }
                }
            }
        }
    }

    /// Removes a node with its outputs, which nobody reads.
    fn take_node(&mut self, id: NodeId) {
        self.order.retain(|&other| other != id);
        if let Some(node) = self.nodes[id.0 as usize].take() {
            for output in node.outputs.into_iter().flatten() {
                self.drop_value(output);
            }
        }
    }

    /// Values that lost their producer and have no reader.
    fn sweep_undefined(&mut self) {
        let uses = self.uses();
        let gone: Vec<ValueId> =
            self.values().filter(|(id, v)| v.def == Def::Outer && uses.count(*id) == 0).map(|(id, _)| id).collect();
        for id in gone {
            self.drop_value(id);
        }
    }

    fn prune(&mut self) {
        let mut needed = vec![false; self.nodes.len()];
        let mut stack: Vec<NodeId> = self.outputs.iter().filter_map(|&v| self.producer(v)).map(|(n, _)| n).collect();
        while let Some(id) = stack.pop() {
            if std::mem::replace(&mut needed[id.0 as usize], true) {
                continue;
            }
            stack.extend(self.reads(id).filter_map(|v| self.producer(v)).map(|(n, _)| n));
        }
        let dead: Vec<NodeId> = self.order.iter().copied().filter(|id| !needed[id.0 as usize]).collect();
        for id in dead {
            if let Some(node) = self.nodes[id.0 as usize].take() {
                for output in node.outputs.into_iter().flatten() {
                    self.drop_value(output);
                }
            }
        }
        let nodes = &self.nodes;
        self.order.retain(|id| nodes[id.0 as usize].is_some());
        let uses = self.uses();
        let unread: Vec<ValueId> = self
            .values()
            .filter(|(id, v)| matches!(v.def, Def::Const(_) | Def::Outer) && uses.count(*id) == 0)
            .filter(|(id, _)| !self.inputs.contains(id))
            .map(|(id, _)| id)
            .collect();
        for id in unread {
            self.drop_value(id);
        }
    }
}
